"""Names of other toolkits that are names here as well, and mean another variant or another network there."""

from __future__ import annotations

# (toolkit, its name, what pathfm calls the same features)
ELSEWHERE = (
    ("STAMP", "virchow", "virchow:cls"),
    ("STAMP", "virchow2", "virchow2:cls"),
    ("TRIDENT", "h0-mini", "h0-mini:cls"),
    ("TRIDENT", "musk", "musk-single-scale"),
    ("AtlasPatch", "resnet50", "resnet50-full"),
)

# Names that no row has, for another variant than a row's own: alias, in lower case, to what it means.
VARIANTS = {
    "midnight12k": "midnight-12k:cls",  # TRIDENT, where class token and patches is an option
    "pathology/kaiko_midnight_12k": "midnight-12k:cls",  # eva takes the class token alone
    "pathology/paige_virchow2": "virchow2:cls",
    "pathology/bioptimus_h0_mini": "h0-mini:cls",
}
