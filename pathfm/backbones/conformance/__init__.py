"""Whether a backbone is what its row says: `pathfm backbones --check`. Offline, with its own weights where they are here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pathfm.backbones.conformance.blueprint import blueprint_checks, drawn
from pathfm.backbones.conformance.check import FINDINGS, Check, said
from pathfm.backbones.conformance.consistency import row_checks
from pathfm.backbones.conformance.numerics import numeric_checks
from pathfm.backbones.conformance.planted import planted_checks
from pathfm.backbones.conformance.roundtrip import weights_check
from pathfm.backbones.conformance.trial import WHOLE, Size, on_trial
from pathfm.backbones.find import find_backbone
from pathfm.backbones.load import resolve_device
from pathfm.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from pathfm.backbones.row import Backbone

__all__ = ["Check", "Size", "check_backbone", "check_row"]


def check_backbone(name: str, device: str = "cpu") -> list[Check]:
    """Holds a backbone against what its row says; of a name of the table nothing is fetched.

    Where its weights are on this machine they are loaded, strictly, and the network itself is looked at. Else its
    architecture is, with random weights; of a giant two layers at full width, as the checks then say.

    Args:
        name: as `find_backbone` takes it: of the table or registered, "local-dir:/folder", "hf-hub:owner/name", ...
        device: where the network runs; see `resolve_device`.

    Raises:
        UnknownNameError: no such name.
        WeightsMissingError: a source whose config.json cannot be had.
        BackboneError: a source whose config.json is that of no model.
        InputError: no such output, revision or device.
    """
    return check_row(find_backbone(name), device=device)


def check_row(row: Backbone, size: Size = WHOLE, device: str = "cpu") -> list[Check]:
    """The checks of `check_backbone` for a row, which need not be in the table.

    Args:
        row: what the backbone is held against.
        size: of the network where it has random weights.
        device: where it runs.
    """
    return [*row_checks(row), *_network_checks(row, size, resolve_device(device))]


def _network_checks(row: Backbone, size: Size, device: torch.device) -> Iterator[Check]:
    try:
        blueprint = drawn(row)
    except FINDINGS as error:
        excused = row.library in ("package", "remote") or isinstance(error, MissingExtraError)
        yield Check("network", "builds", said(error), passed=None if excused else False)
        return
    yield from blueprint_checks(row, blueprint)
    yield weights_check(row, blueprint, size)
    try:
        trial = on_trial(row, blueprint, size, device)
    except FINDINGS as error:
        yield Check("network", "loads", said(error), passed=False)
        return
    yield from planted_checks(trial)
    yield from numeric_checks(trial)
