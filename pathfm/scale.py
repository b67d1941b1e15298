"""Microns per pixel of level 0: what a slide states, and when it is not to be believed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pathfm.errors import InputError, MppError
from pathfm.privacy import allowed
from pathfm.progress import logger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MppSource = Literal["metadata", "override", "cohort"]
MPP_SANE = (0.05, 5.0)
"""Microns per pixel that level 0 of a scan can have."""

_AXES = ("openslide.mpp-x", "openslide.mpp-y")
_POWER = "openslide.objective-power"
_AXES_TOLERANCE = 1.02
_POWER_TOLERANCE = 1.6
_OVERRIDE_TOLERANCE = 1.10 * (1 + 1e-6)  # 0.55 for 0.5 passes however the two were rounded
_REMEDY = "fill the column 'mpp' in the cohort, or pass --mpp-override 0.25 (a 40x scan)"


def require_sane_mpp(mpp: float, what: str) -> None:
    """Refuses an override that no scanner has.

    Raises:
        InputError: not between the two of `MPP_SANE`; the message starts with `what`.
    """
    if not MPP_SANE[0] <= mpp <= MPP_SANE[1]:
        message = f"{what} is outside {MPP_SANE[0]:g}-{MPP_SANE[1]:g} microns per pixel; a 40x scan has about 0.25, a 20x scan 0.5"
        raise InputError(message)


def stated_mpp(properties: Mapping[str, str]) -> float | None:
    """The mean of the two axes as a slide states them, None where it states neither."""
    known = [axis for axis in (positive_number(properties, name) for name in _AXES) if axis is not None]
    return sum(known) / len(known) if known else None


def objective_power(properties: Mapping[str, str]) -> float | None:
    """The magnification that a slide states, None where it does not; never used to read, only to doubt."""
    return positive_number(properties, _POWER)


def settled_mpp(path: Path, properties: Mapping[str, str], override: float | None, source: MppSource) -> float:
    """The mpp that counts: the override where there is one, else what the slide states.

    A flag speaks for all slides of a run, so it may not overrule one that states a believable mpp; the cohort's column
    speaks for one slide and may, with a warning.

    Raises:
        MppError: as `believed_mpp` without an override; the flag differs from a believable mpp by over 10 %.
    """
    if override is None:
        return believed_mpp(path, properties)
    try:
        stated = believed_mpp(path, properties)
    except MppError:
        return override
    if max(stated, override) <= _OVERRIDE_TOLERANCE * min(stated, override):
        return override
    if source == "cohort":
        logger.warning("%s states %.4g mpp, the cohort says %.4g and is believed", path, stated, override)
        return override
    remedy = "fill the cohort's column 'mpp' for the slides that state none or a wrong one"
    message = f"{path} states {stated:.4g} mpp, --mpp-override says {override:g}; {remedy}"
    raise MppError(path, "contradicted mpp", message)


def believed_mpp(path: Path, properties: Mapping[str, str]) -> float:
    """What a slide states, once nothing speaks against it.

    An objective of power p has about 10 / p microns per pixel; cameras and adapters vary, so only a factor of 1.6 counts
    as a contradiction.

    Raises:
        MppError: stated nowhere, outside `MPP_SANE`, different along x and y by over 2 %, or against the objective.
    """
    stated, power = stated_mpp(properties), objective_power(properties)
    if stated is None:
        raise MppError(path, "no mpp", f"{path} states no mpp; {_REMEDY}")
    if not MPP_SANE[0] <= stated <= MPP_SANE[1]:
        message = f"{path} states an absurd mpp of {stated:g} (a scan has {MPP_SANE[0]:g}-{MPP_SANE[1]:g}); {_REMEDY}"
        raise MppError(path, "absurd mpp", message)
    across, down = (positive_number(properties, name) or stated for name in _AXES)
    if max(across, down) > _AXES_TOLERANCE * min(across, down):
        message = f"{path} states two mpp, {across:g} across and {down:g} down, over 2 % apart; {_REMEDY}"
        raise MppError(path, "contradicted mpp", message)
    if power and not 1 / _POWER_TOLERANCE <= stated * power / 10 <= _POWER_TOLERANCE:
        message = f"{path} states {stated:g} mpp and a {power:g}x objective, which has about {10 / power:g}; {_REMEDY}"
        raise MppError(path, "contradicted mpp", message)
    return stated


def positive_number(properties: Mapping[str, str], name: str) -> float | None:
    """A property as a number, None where it is missing, no number, or not above 0."""
    try:
        value = float(allowed(properties).get(name, "nan"))
    except ValueError:
        return None
    return value if 0 < value < math.inf else None
