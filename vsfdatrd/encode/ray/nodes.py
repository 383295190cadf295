"""The machines of a Ray cluster: which are there, which of them lack something, and what a task is given of one."""

from typing import Any, Protocol

from vsfdatrd.errors import EncodeError

_MOST_CPUS = 8  # of one task: beyond, two chunks beside each other are faster than one


class Say(Protocol):
    """Tells the user something; `Reporter.say`."""

    def __call__(self, event: str, text: str, **facts: Any) -> None:
        """event, facts: for programs. text: for people."""


class Nodes:
    """As one film sees them. A machine is known by Ray's number of it."""

    def __init__(self, ray: Any, say: Say) -> None:
        self._ray, self._say = ray, say
        self.fit: set[str] = set()
        """Those that said they have everything."""
        self.unfit: dict[str, str] = {}
        """Those that do not, and what they lack."""
        self.needs: dict[str, int] = {}
        """What a task is given, as Ray's options; see `share_out`."""
        self._names: dict[str, str] = {}

    def alive(self) -> dict[str, dict[str, float]]:
        """Machines that are there, and what each has to give."""
        found = {}
        for node in self._ray.nodes():
            if node["Alive"]:
                found[node["NodeID"]] = node["Resources"]
                self._names[node["NodeID"]] = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        return found

    def able(self) -> dict[str, dict[str, float]]:
        """Those of them that can do a task, as far as is known."""
        wanted = (("GPU", self.needs.get("num_gpus", 0)), ("CPU", self.needs.get("num_cpus", 0)))
        return {
            machine: resources for machine, resources in self.alive().items()
            if machine not in self.unfit and all(resources.get(name, 0) >= count for name, count in wanted)
        }  # fmt: skip

    def name(self, machine: str) -> str:
        """As people call it; ``Ray`` for none in particular."""
        return self._names.get(machine, "Ray")

    def leave_out(self, machine: str, complaint: str) -> None:
        """Give it nothing to do any more."""
        if machine in self.unfit:
            return
        self.unfit[machine] = complaint
        self.fit.discard(machine)
        if machine not in self._names:
            self.alive()
        self._say("left out", f"{self._names[machine]} is left out: it {complaint}", machine=self._names[machine])

    def none_left(self) -> None:
        """Raises EncodeError if every machine was left out."""
        if self.alive().keys() <= self.unfit.keys():
            machine, complaint = next(iter(self.unfit.items()))
            raise EncodeError(f"no machine of the Ray cluster can do it: {self._names[machine]} {complaint}")

    def share_out(self) -> int | None:
        """Settle what a task is given, and tell: a GPU where there is one, else some CPUs. -> how many CPUs, or None.

        Raises EncodeError if nobody has anything to give.
        """
        self.none_left()
        able = [resources for machine, resources in self.alive().items() if machine not in self.unfit]
        cpus = None
        if any(resources.get("GPU", 0) >= 1 for resources in able):
            able = [resources for resources in able if resources.get("GPU", 0) >= 1]
            self.needs = {"num_gpus": 1, "num_cpus": int(all(resources.get("CPU", 0) >= 1 for resources in able))}
            parts, what = sum(int(resources["GPU"]) for resources in able), "a GPU"
        else:
            able = [resources for resources in able if resources.get("CPU", 0) >= 1]
            if not able:
                raise EncodeError("the Ray cluster has neither GPUs nor CPUs to give; start a machine that has some")
            cpus = min([_MOST_CPUS, *(int(resources["CPU"]) for resources in able)])
            self.needs = {"num_cpus": cpus}
            parts, what = sum(int(resources["CPU"]) // cpus for resources in able), _counted(cpus, "CPU")
        text = f"Ray: {_counted(parts, 'part')} at once, each with {what}, on {_counted(len(able), 'machine')}"
        self._say("machines", text, machines=len(able), parts=parts)
        return cpus


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
