"""The machines of a Ray cluster: which are alive, which are excluded, and the resources of a task."""

from collections.abc import Callable
from typing import Any

from vsfdatrd.errors import EncodeError

_MAX_CPUS = 8  # per task: with more CPUs, two chunks in parallel are faster than one


type ReportFunction = Callable[..., None]
"""Reports a message to the user, as `Reporter.emit` does."""


class Nodes:
    """The machines of the cluster during one encode. A machine is identified by its Ray node ID."""

    def __init__(self, ray: Any, report: ReportFunction) -> None:
        """Start with no machine checked or excluded.

        Args:
            ray: The connected module `ray`.
            report: Receives messages.
        """
        self._ray, self._report = ray, report
        self.passed: set[str] = set()
        """Machines that have passed the preflight check."""
        self.excluded: dict[str, str] = {}
        """Excluded machines, with the reason."""
        self.needs: dict[str, int] = {}
        """Resources of a task, as Ray options; set by `plan_resources`."""
        self._names: dict[str, str] = {}

    def alive(self) -> dict[str, dict[str, float]]:
        """Return the machines that are alive, with the total resources of each."""
        result = {}
        for node in self._ray.nodes():
            if node["Alive"]:
                result[node["NodeID"]] = node["Resources"]
                self._names[node["NodeID"]] = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        return result

    def usable(self) -> dict[str, dict[str, float]]:
        """Return the machines that are alive, not excluded, and have the resources for a task."""
        required = (("GPU", self.needs.get("num_gpus", 0)), ("CPU", self.needs.get("num_cpus", 0)))
        return {
            machine: resources
            for machine, resources in self.alive().items()
            if machine not in self.excluded and all(resources.get(name, 0) >= count for name, count in required)
        }

    def name(self, machine: str) -> str:
        """Return a machine's host name and address for messages; ``Ray`` if the machine is unknown.

        Args:
            machine: A Ray node ID.
        """
        return self._names.get(machine, "Ray")

    def exclude(self, machine: str, mismatch: str) -> None:
        """Exclude a machine from further tasks, and report it.

        Args:
            machine: A Ray node ID.
            mismatch: The reason, as a phrase that follows the machine's name.
        """
        if machine in self.excluded:
            return
        self.excluded[machine] = mismatch
        self.passed.discard(machine)
        if machine not in self._names:
            self.alive()
        self._report("left out", f"{self.name(machine)} is left out: it {mismatch}", machine=self.name(machine))

    def check_any_left(self) -> None:
        """Check that at least one machine is left.

        Raises:
            EncodeError: Every machine that is alive has been excluded.
        """
        if self.alive().keys() <= self.excluded.keys():
            machine, mismatch = next(iter(self.excluded.items()))
            raise EncodeError(f"no machine of the Ray cluster can encode: {self.name(machine)} {mismatch}")

    def plan_resources(self) -> int | None:
        """Choose and report the resources of a task: one GPU if any machine has one, otherwise up to 8 CPUs.

        Returns:
            The number of CPUs per task; None for GPU tasks, which may use all CPUs.

        Raises:
            EncodeError: No machine is left, or none has GPUs or CPUs.
        """
        self.check_any_left()
        usable = [resources for machine, resources in self.alive().items() if machine not in self.excluded]
        cpus = None
        if any(resources.get("GPU", 0) >= 1 for resources in usable):
            usable = [resources for resources in usable if resources.get("GPU", 0) >= 1]
            self.needs = {"num_gpus": 1, "num_cpus": int(all(resources.get("CPU", 0) >= 1 for resources in usable))}
            parts, per_part = sum(int(resources["GPU"]) for resources in usable), "a GPU"
        else:
            usable = [resources for resources in usable if resources.get("CPU", 0) >= 1]
            if not usable:
                raise EncodeError("the Ray cluster offers neither GPUs nor CPUs; start a machine that has some")
            cpus = min([_MAX_CPUS, *(int(resources["CPU"]) for resources in usable)])
            self.needs = {"num_cpus": cpus}
            parts, per_part = sum(int(resources["CPU"]) // cpus for resources in usable), _format_count(cpus, "CPU")
        machines = _format_count(len(usable), "machine")
        text = f"Ray: {_format_count(parts, 'chunk')} at once, each with {per_part}, on {machines}"
        self._report("machines", text, machines=len(usable), parts=parts)
        return cpus


def _format_count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
