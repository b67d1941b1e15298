"""What other tools call the backbones that pathfm has rows for."""

from __future__ import annotations

OUR_NAMES = {
    # TRIDENT
    "uni_v1": "uni",
    "uni_v2": "uni2-h",
    "hoptimus0": "h-optimus-0",
    "hoptimus1": "h-optimus-1",
    "phikon_v2": "phikon-v2",
    "midnight12k": "midnight-12k",
    # STAMP, whose virchow and virchow2 are the class token alone: their width tells
    "mahmood-uni": "uni",
    "mahmood-uni2": "uni2-h",
    "uni2": "uni2-h",
    "virchow_full": "virchow",
    # AtlasPatch, whose resnet50 is the whole network
    "phikon_v1": "phikon",
    "virchow_v1": "virchow",
    "virchow_v2": "virchow2",
    "prov_gigapath": "gigapath",
    "midnight": "midnight-12k",
    "h_optimus_0": "h-optimus-0",
    "h_optimus_1": "h-optimus-1",
    "h0_mini": "h0-mini",
    "lunit_vit_small_patch16_dino": "lunit-vits16",
    "lunit_vit_small_patch8_dino": "lunit-vits8",
    # CLAM
    "resnet50_trunc": "resnet50",
    # slideflow's classes
    "UNIFeatures": "uni",
    "GigapathFeatures": "gigapath",
    "VirchowFeatures": "virchow",
    "Virchow2Features": "virchow2",
    "Hoptimus0Features": "h-optimus-0",
    "PhikonV2Features": "phikon-v2",
}


def our_name(name: str) -> str:
    """The name in pathfm of a backbone by any name."""
    return OUR_NAMES.get(name, name)


def folder_name(name: str) -> str:
    """The name of a backbone as part of a path."""
    return name.replace("/", "--").replace(":", "--")
