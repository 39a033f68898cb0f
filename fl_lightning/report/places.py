"""Where adapters lie to each other: principal components of the direction in which their A-matrices moved."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fl_lightning.checkpoint import checkpoints
from fl_lightning.errors import InputError
from fl_lightning.files import natural_key
from fl_lightning.state import LoraState, is_lora_a
from fl_lightning.tensor_files import read_state

MOST_NUMBERS = 2**27
"""Of all A-matrices together, half a GiB; further clients are left off the map."""

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Place:
    """An adapter on the map."""

    department: str
    client: str
    """Empty for a department's or a group's own adapter."""
    x: float
    y: float


@dataclass
class Places:
    """A map.

    Attributes:
        shares: of the variance on the first and on the second axis.
        start: whether A₀ was known; A itself is mapped where not.
        notes: what is not on it, and why.
    """

    places: list[Place] = field(default_factory=list)
    shares: tuple[float, float] = (0.0, 0.0)
    start: bool = False
    notes: list[str] = field(default_factory=list)


def map_adapters(run_folder: Path) -> Places:
    """Put the departments' newest adapters and every client's newest exported one on a map.

    Returns:
        The map; without places where there are fewer than two adapters that can be compared.
    """
    found = Places()
    initial = initial_a(run_folder)
    found.start = bool(initial)
    states: dict[tuple[str, str], LoraState] = {}
    numbers = 0
    for who, path in _adapters(run_folder):
        if numbers >= MOST_NUMBERS:
            found.notes.append("There are more clients than fit on the map.")
            break
        try:
            state = {name: tensor for name, tensor in read_state(path).items() if is_lora_a(name)}
        except (InputError, OSError) as error:
            found.notes.append(f"{'/'.join(filter(None, who))} is not on the map: {error}")
            continue
        states[who] = state
        numbers += sum(tensor.numel() for tensor in state.values())
    layouts = {who: _layout(state) for who, state in states.items()}
    usual = _layout(initial) if initial else next(iter(Counter(layouts.values()).most_common(1)), ((), 0))[0]
    others = [who for who, layout in layouts.items() if layout != usual]
    if others:
        found.notes.append(f"{len(others)} adapters of another rank or of other layers are not on the map.")
    known = [who for who in states if who not in others]
    if len(known) < 2 or not usual:
        return found
    x = np.stack([_vector(states[who], initial) for who in known])
    points, found.shares = components(_unit(x) if initial else x)
    if not points.any():
        found.notes.append("No A has moved away from the others, as where A is frozen.")
        return found
    found.places = [Place(*who, *map(float, point)) for who, point in zip(known, points, strict=True)]
    return found


def initial_a(run_folder: Path) -> LoraState:
    """A₀ out of the newest checkpoint that can be read; empty where there is none."""
    folders = checkpoints(run_folder) if (run_folder / "checkpoints").is_dir() else {}
    for round_num in sorted(folders, reverse=True):
        try:
            tensors = read_state(folders[round_num] / "state.safetensors")
        except (InputError, OSError):
            continue
        parts = {key: key.split("|", 2) for key in tensors}
        return {p[2]: tensors[k] for k, p in parts.items() if len(p) == 3 and p[0] == "initial" and is_lora_a(p[2])}
    return {}


def _adapters(run_folder: Path) -> Iterator[tuple[tuple[str, str], Path]]:
    """((department, client), file): departments and groups first, then each client's newest export."""
    whole = run_folder.resolve()
    for path in sorted(run_folder.glob(f"adapters/*/{WEIGHTS}"), key=lambda p: natural_key(p.parent.name)):
        if path.resolve().is_relative_to(whole):
            yield (path.parent.name, ""), path
    newest: dict[tuple[str, str], tuple[int, Path]] = {}
    for path in run_folder.glob(f"client_exports/*/round_*/{WEIGHTS}"):
        match = re.fullmatch(r"round_([0-9]{1,9})_(.+)", path.parent.name)
        if match and path.resolve().is_relative_to(whole):
            who = path.parents[1].name, match[2]
            newest[who] = max(newest.get(who, (0, path)), (int(match[1]), path))
    for who in sorted(newest, key=lambda w: natural_key("/".join(w))):
        yield who, newest[who][1]


def _layout(state: Mapping[str, object]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, tuple(getattr(state[name], "shape", ()))) for name in sorted(state))


def _vector(state: LoraState, initial: LoraState) -> npt.NDArray[np.float32]:
    parts = [
        (t.float() - initial[n].float() if initial else t.float()).flatten().numpy() for n, t in sorted(state.items())
    ]
    vector: npt.NDArray[np.float32] = np.nan_to_num(np.concatenate(parts)).astype(np.float32)
    return vector


def _unit(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows of length one, as in the representation ``delta``; what has not moved stays at zero."""
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = np.divide(x, lengths, out=np.zeros_like(x), where=lengths > 0)
    return unit


def components(x: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float64], tuple[float, float]]:
    """(coordinates of shape (n, 2), shares of the variance) on the first two principal components of n rows.

    Of the Gram matrix, so d may be large; that is classical multidimensional scaling of the Euclidean distances. Each
    axis points to where its largest coordinate is positive.

    Example:
        >>> points, shares = components(np.array([[0.0, 0.0], [3.0, 4.0]], dtype=np.float32))
        >>> points.round(3).tolist(), shares
        ([[-2.5, 0.0], [2.5, 0.0]], (1.0, 0.0))
    """
    centred = x - x.mean(axis=0)
    gram = (centred @ centred.T).astype(np.float64)
    values, vectors = np.linalg.eigh(gram)
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    points = np.zeros((len(x), 2))
    for axis in range(min(2, len(x))):
        if values[axis] > 1e-9 * max(values[0], 1e-30):
            points[:, axis] = vectors[:, axis] * np.sqrt(values[axis])
            points[:, axis] *= 1.0 if points[:, axis].max() >= -points[:, axis].min() - 1e-6 else -1.0
    if len(x) == 2 and points[0, 0] > 0:  # two points are as far from the middle, whichever comes first
        points[:, 0] *= -1
    total = float(values.sum()) or 1.0
    shares = [round(float(v) / total, 6) for v in values[:2]]
    return points, (shares[0], shares[1])
