"""A row of the table of backbones: what a frozen network is, expects of a tile and gives, and on what terms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pathfm.licences import Licence

Output = Literal["cls", "mean", "cls+mean", "pooled", "layer3"]
Library = Literal["python", "timm", "transformers", "package", "remote"]
Precision = Literal["float32", "float16", "bfloat16"]
Rgb = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A frozen network from a tile to an embedding, and everything that it expects of a tile.

    Attributes:
        name: what --backbone says.
        aliases: what other toolkits call it (TRIDENT, STAMP, slide2vec, eva, ...), lower case.
        source: where the weights are: "hf-hub:owner/repo", "local-dir:/folder", or "python:package.module:Class" for a
            class without arguments whose instances map float32 (b, 3, h, w) to (b, dim); "https:" and a page for
            what is not to be had in any of these ways.
        library: what builds the network: timm; transformers; python (a class); package, the authors' own package, by
            `build`; remote, only code that the repository would run on this machine, which pathfm does not do.
        revision: branch, tag or commit of the repository.
        weights_file: name of the file with the weights; "" for model.safetensors, else pytorch_model.bin.
        weights_sha256: hex digest of that file; "" where it is not pinned.
        arch: architecture to build it with: a model of timm, or a model class of transformers, such as "ViTModel"; ""
            where the source alone knows.
        arch_kwargs: its arguments: those of timm's create_model, or of the transformers configuration.
        load_kwargs: further arguments of from_pretrained, transformers only.
        build: "module:function" that gives the network of a "package" row with its weights, from the row alone.
        install: the command that installs what `build` needs.
        n_params: parameters of the network; None where only the loaded model knows.
        shapes_sha8: first 8 hex digits of `state_shapes_sha256`: names and shapes of its state dict; "" where not known,
            and for a model of transformers, which renames the parts of its models from version to version.
        swiglu: its MLP is a packed SwiGLU, which a configuration file cannot say.
        output: what of its output is the embedding, as its makers recommend; "cls+mean" is the class token beside the
            mean of the patch tokens, "layer3" the mean over the map after the third stage of a ResNet, "pooled" what the
            model itself pools.
        outputs: all that can be asked for, as NAME:OUTPUT; () for `output` alone.
        prefix_tokens: class and register tokens before the patch tokens; never part of a mean.
        dim: length of an embedding; None where only the loaded model knows.
        size_px: width of the tile it was made for; None accepts any.
        mpp: microns per pixel of that tile; None accepts any.
        other_mpp: further resolutions that its makers trained it on.
        least_px: narrowest tile that it can take at all.
        resize_px: the tile is resized to this width first; None leaves it.
        crop_px: then its centre of this width is cut out; None leaves it.
        interpolation: of the resize, always antialiased.
        mean_std: of RGB in [0, 1], subtracted and divided last; None leaves the values in [0, 1].
        precision: of its matrix products on a GPU, as its makers or the public toolkits run it; float32 where nobody says.
        licence: of the weights, an SPDX id where there is one; "unknown" where nobody states one.
        derivatives: what the licence, or its page, says of what is made with the weights: embeddings, heads; "" where
            it is a permissive licence without further terms, or nothing is known.
        gated: its page must be visited before a download; None where sources disagree.
        citation: the paper, as "authors, title, venue year, doi or arXiv"; "" where there is none.
    """

    name: str
    aliases: tuple[str, ...] = ()
    source: str
    library: Library = "timm"
    revision: str = "main"
    weights_file: str = ""
    weights_sha256: str = ""
    arch: str = ""
    arch_kwargs: dict[str, Any] = field(default_factory=dict)
    load_kwargs: dict[str, Any] = field(default_factory=dict)
    build: str = ""
    install: str = ""
    n_params: int | None = None
    shapes_sha8: str = ""
    swiglu: bool = False
    output: Output = "cls"
    outputs: tuple[Output, ...] = ()
    prefix_tokens: int = 0
    dim: int | None = None
    size_px: int | None = None
    mpp: float | None = None
    other_mpp: tuple[float, ...] = ()
    least_px: int = 8
    resize_px: int | None = None
    crop_px: int | None = None
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean_std: tuple[Rgb, Rgb] | None = None
    precision: Precision = "float32"
    licence: str = "unknown"
    derivatives: str = ""
    gated: bool | None = None
    citation: str = ""

    @property
    def terms(self) -> Licence:
        """The licence, as it travels with the embeddings."""
        return Licence(self.name, self.licence, self.derivatives, self.page)

    @property
    def repo(self) -> str | None:
        """The repository on the Hugging Face hub, None where there is none."""
        return self.source.removeprefix("hf-hub:") if self.source.startswith("hf-hub:") else None

    @property
    def page(self) -> str:
        """The page where the makers state licence and terms; "" where there is none."""
        if self.source.startswith("https:"):
            return self.source
        return f"https://huggingface.co/{self.repo}" if self.repo else ""

    @property
    def default_size_px(self) -> int:
        """The tile width that is used when none is asked for."""
        return self.size_px or self.resize_px or 224

    @property
    def default_mpp(self) -> float:
        """The resolution that is used when none is asked for: its own, else 0.5, where most of them were trained."""
        return self.mpp or 0.5

    @property
    def tile(self) -> str:
        """What it expects of a tile, in words."""
        size = f"{self.size_px} px" if self.size_px else "any px"
        mpp = " or ".join(f"{value:g}" for value in (self.mpp, *self.other_mpp)) if self.mpp else "any"
        return "any" if not self.size_px and not self.mpp else f"{size} @ {mpp} mpp"
