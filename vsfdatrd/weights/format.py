"""Detect the format of a weights file by its content, not its name, and open it with the right reader."""

from collections.abc import Callable, Sequence
from pathlib import Path

from vsfdatrd.weights.files import WeightsFile, check_file, reading, refusal
from vsfdatrd.weights.safetensors_file import MAX_HEADER, SafetensorsFile
from vsfdatrd.weights.torch_file import LEGACY_TEXT, TorchFile

# Files often mistaken for weights, by their first bytes.
_OTHER_FORMATS = (
    (b"<", "is a web page or an XML file, not weights; the download went wrong, fetch the file itself"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the weights; fetch them with 'git lfs pull'"),
    (b"GGUF", "is a GGUF language model, not an image network"),
    (b"\x89HDF", "is an HDF5 file; convert the weights to .safetensors"),
)


def open_weights(path: Path, others: Sequence[Callable[[Path, bytes], WeightsFile | None]] = ()) -> WeightsFile:
    """Open a weights file of any format and read its list of tensors.

    Args:
        path: The file.
        others: Readers of further formats; they get the path and the first bytes, and return None for other formats.

    Returns:
        The reader; values are read on demand.

    Raises:
        CheckpointError: It is not a valid file of tensors. The message has the reason and what to do.
    """
    size = check_file(path).st_size
    with reading(path), path.open("rb") as file:
        head = file.read(1 << 16)
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= max(size, MAX_HEADER):
        return SafetensorsFile(path)
    for reader in others:
        if (opened := reader(path, head)) is not None:
            return opened
    pickled = (head[0] == 0x80 and head[1:2] <= b"\x05") or head.startswith(LEGACY_TEXT)
    if pickled or head.startswith(b"PK\x03\x04") or head[257:262] == b"ustar":
        return TorchFile(path)
    raise refusal(path, _explain_unknown(head, size, path.suffix))


def _explain_unknown(head: bytes, size: int, suffix: str) -> str:
    """Explain what an unrecognized file is, and what to do."""
    impostor = next((reason for start, reason in _OTHER_FORMATS if head.startswith(start)), None)
    length = int.from_bytes(head[:8], "little")
    if impostor or suffix.lower() != ".safetensors":
        return impostor or "is neither a safetensors nor a PyTorch file; give a .safetensors or .pth file of weights"
    if length > size - 8:
        sizes = f"it announces a header of {length:,} bytes and has {max(0, size - 8):,} in all"
        return f"is damaged: {sizes}; download it again"
    return "is damaged: no safetensors header follows its first eight bytes; download it again"
