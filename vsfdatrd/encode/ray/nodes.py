"""The machines of a Ray cluster: which are alive, which are excluded, and the resources of a task."""

from typing import Any, Protocol

from vsfdatrd.errors import EncodeError

_MOST_CPUS = 8  # per task: with more CPUs, two chunks in parallel are faster than one


class Say(Protocol):
    """Reports a message to the user, as `Reporter.say` does."""

    def __call__(self, event: str, text: str, **facts: Any) -> None:
        """Report a message.

        Args:
            event: Kind of message, for programs.
            text: The message, for people.
            facts: Further values for programs.
        """


class Nodes:
    """The machines of the cluster during one encode. A machine is identified by its Ray node ID."""

    def __init__(self, ray: Any, say: Say) -> None:
        """Start without knowledge of any machine.

        Args:
            ray: The connected module `ray`.
            say: Receives messages.
        """
        self._ray, self._say = ray, say
        self.fit: set[str] = set()
        """Machines that have passed the preflight check."""
        self.unfit: dict[str, str] = {}
        """Excluded machines, with the reason."""
        self.needs: dict[str, int] = {}
        """Resources of a task, as Ray options; set by `share_out`."""
        self._names: dict[str, str] = {}

    def alive(self) -> dict[str, dict[str, float]]:
        """Return the machines that are alive, with the total resources of each."""
        found = {}
        for node in self._ray.nodes():
            if node["Alive"]:
                found[node["NodeID"]] = node["Resources"]
                self._names[node["NodeID"]] = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        return found

    def able(self) -> dict[str, dict[str, float]]:
        """Return the machines that are alive, not excluded, and have the resources for a task."""
        wanted = (("GPU", self.needs.get("num_gpus", 0)), ("CPU", self.needs.get("num_cpus", 0)))
        return {
            machine: resources
            for machine, resources in self.alive().items()
            if machine not in self.unfit and all(resources.get(name, 0) >= count for name, count in wanted)
        }

    def name(self, machine: str) -> str:
        """Return a machine's name and address for messages.

        Args:
            machine: A Ray node ID.

        Returns:
            Host name and address; ``Ray`` if the machine is unknown.
        """
        return self._names.get(machine, "Ray")

    def leave_out(self, machine: str, complaint: str) -> None:
        """Exclude a machine from further tasks, and report it.

        Args:
            machine: A Ray node ID.
            complaint: The reason, as a phrase that follows the machine's name.
        """
        if machine in self.unfit:
            return
        self.unfit[machine] = complaint
        self.fit.discard(machine)
        if machine not in self._names:
            self.alive()
        self._say("left out", f"{self._names[machine]} is left out: it {complaint}", machine=self._names[machine])

    def none_left(self) -> None:
        """Check that a machine is left.

        Raises:
            EncodeError: Every machine that is alive has been excluded.
        """
        if self.alive().keys() <= self.unfit.keys():
            machine, complaint = next(iter(self.unfit.items()))
            raise EncodeError(f"no machine of the Ray cluster can do it: {self._names[machine]} {complaint}")

    def share_out(self) -> int | None:
        """Choose and report the resources of a task: one GPU if any machine has one, otherwise up to 8 CPUs.

        Returns:
            The number of CPUs per task; None for GPU tasks, which may use all CPUs.

        Raises:
            EncodeError: No machine is left, or none has GPUs or CPUs.
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
