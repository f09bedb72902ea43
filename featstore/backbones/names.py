"""Names of networks that nobody here knows: timm's names for those of other libraries, and else the nearest ones.

A rule is a pattern of another library's names and timm's for them; what timm does not have is never answered.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cache

import timm

from featstore.backbones.card import POOLINGS
from featstore.backbones.registry import ALIASES, CARDS
from featstore.backbones.sources import SOURCES
from featstore.errors import UnknownBackboneError
from featstore.support import NAMED, few

Rule = tuple[str, Callable[[dict[str, str]], Iterable[str]]]
"""A pattern of a whole name in small letters, and from its groups the shell patterns of timm's names: the first that
timm has anything for is the answer."""

_LONGEST = 100
"""Of a name that is compared with others, in characters."""
_SIZE = {
    **{"ti": "tiny", "t": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant"},
    **{
        "e": "enormous",
        "bigg": "gigantic",
        "7b": "7b",
        "so400m": "so400m",
        "gopt": "giantopt",
        "giant-opt": "giantopt",
    },
}
_WEIGHTS = r"imagenet1k_v(?P<version>[12])"


def unknown_backbone(name: str) -> UnknownBackboneError:
    """The error for a name that no network has; says what timm calls it, or which names are near, five at most.

    Args:
        name: as the user wrote it, with what follows a slash or an @ that is no view of ours.
    """
    name = re.sub(rf":({'|'.join(POOLINGS)})$", "", name)
    names, elsewhere = _translate(name), _elsewhere(name)
    own = _without_timm(name)
    architecture, _, tag = own.partition(".")
    if tag and not names and timm.is_model(architecture):
        return UnknownBackboneError(_unknown_tag(architecture, tag))
    said = f"unknown backbone {_shorten(name)!r}"
    also = f", or say -b {elsewhere}" if elsewhere else ""
    if len(names) == 1:
        return UnknownBackboneError(f"{said}; timm calls it {names[0]}{_as_trained(names[0])}{also}")
    if names:
        return UnknownBackboneError(f"{said}; in timm it may be {few(names)}{also}")
    near = _near(own)
    how = f"`featstore backbones '{_pattern(own, near)}'` lists timm's by a pattern"
    if not near:
        return UnknownBackboneError(f"{said}; no name is near{also} ({how})")
    return UnknownBackboneError(f"{said}; did you mean {few(near, quoted=True)}{also}? ({how})")


def _as_trained(name: str) -> str:
    """OpenAI trained with a faster GELU, and timm has these weights under a network with either."""
    exact = name.replace("_clip_", "_clip_quickgelu_")
    known = exact != name and exact in _released()
    return f" ({exact} with the activation that it was trained with)" if known else ""


def _unknown_tag(architecture: str, tag: str) -> str:
    """What there is of a network whose weights do not exist under that tag."""
    tags = sorted(_tags(architecture))
    if not tags:
        return f"backbone {architecture!r} has no released weights, so it takes no tag; leave out .{_shorten(tag)}"
    near = difflib.get_close_matches(tag[:_LONGEST].lower(), tags, n=NAMED, cutoff=0.3)
    shown = [f"{architecture}.{each}" for each in [*near, *(each for each in tags if each not in near)]]
    how = f" (`featstore backbones '{architecture}.*'` lists them)" if len(tags) > NAMED else ""
    return f"backbone {architecture!r} has no weights {_shorten(tag)!r}; there are {few(shown)}{how}"


def _translate(name: str) -> list[str]:
    """timm's names of a network of another library; empty if it is not recognised."""
    text = _without_timm(name.strip()[:_LONGEST].lower())
    if text != name and _is_known(text):
        return [ALIASES.get(text, text)]
    first, _, rest = text.partition("/")
    for part in (text, rest, first):  # whole, without the owner on the hub, without the weights
        for pattern, answer in _RULES:
            found = re.fullmatch(pattern, part)
            if found is None:
                continue
            groups = {key: value or "" for key, value in found.groupdict().items()}
            for glob in answer(groups):
                if names := _existing(glob):
                    return names
    owned = re.sub(r"(?:[-_](?:\d{3}|\d+k))+$", "", rest)  # facebook/convnext-base-224-22k-1k
    same = (ALIASES.get(each, each) for part in (text, rest, owned) for each in _same(part))
    return [each for each in same if timm.is_model(each)][:1]


def _without_timm(name: str) -> str:
    """A name without the source or the owner that another library writes before it."""
    return re.sub(r"^(?:hf[-_]hub:|hf:|torchvision:|open_clip:|https?://huggingface\.co/)?(?:timm/)?", "", name)


def _clip(groups: dict[str, str]) -> Iterator[str]:
    """OpenAI's, OpenCLIP's and Hugging Face's transformers of CLIP."""
    size, pixels = _SIZE.get(groups["size"], groups["size"]), groups["pixels"] or "224"
    vit = f"vit_{size}_patch{groups['patch']}"
    if not groups.get("clip") and not groups["tag"]:  # papers call the network of ImageNet so, too
        yield f"{vit}_{pixels} {vit}_clip_{pixels}.openai"
    for quick in ("_quickgelu", "") if groups.get("quick") or groups.get("quick_too") else ("",):
        yield from _with_tag(f"{vit}_clip{quick}_{pixels}", groups.get("tag", ""))


def _with_tag(architecture: str, tag: str) -> Iterator[str]:
    """A network of CLIP with the weights of an OpenCLIP tag, as `laion2b_s34b_b79k`; it begins as timm's tag."""
    begins = [each for each in _tags(architecture) if _squeeze(tag).startswith(_squeeze(each))]
    if tag and begins:
        yield f"{architecture}.{max(begins, key=len)}"
    yield from (f"{architecture}.{each}" for each in ("openai", "laion2b", "*") if not tag or each == "*")


def _siglip(groups: dict[str, str]) -> Iterator[str]:
    size, pixels = _SIZE.get(groups["size"], groups["size"]), groups["pixels"] or "224"
    tag = "v2_webli" if groups["second"] else "webli_i18n" if "i18n" in groups["rest"] else "webli"
    architecture = f"vit_{size}_patch{groups['patch']}_siglip_{pixels}"
    yield f"{architecture}.{tag}"
    if groups["patch"] == "14" and pixels == "384":  # 27 patches of 14: the second ones are named by what they are
        yield f"{architecture.removesuffix('384')}378.{tag}"


def _dino(groups: dict[str, str]) -> Iterator[str]:
    size, patch = _SIZE.get(groups["size"], groups["size"]), groups["patch"]
    if groups["version"] == "2":
        registers = "_reg4" if groups["registers"] or "reg" in groups["rest"] else ""
        yield f"vit_{size}_patch14{registers}_dinov2.*"
    elif groups["version"] == "3":
        tag = "sat493m" if "sat493m" in groups["rest"] else "lvd1689m"
        plus = "_plus" if groups["plus"] else ""
        convnext = groups["network"] == "convnext"
        yield f"convnext_{size}.dinov3_{tag}" if convnext else f"vit_{size}{plus}_patch{patch or 16}_dinov3.{tag}"
    else:
        yield f"vit_{size}_patch{patch or 16}_224.dino"


def _torchvision_weights(groups: dict[str, str]) -> Iterator[str]:
    """`ResNet50_Weights.IMAGENET1K_V2`, `resnet50.IMAGENET1K_V2`, and what is left of it without the network."""
    tags = [{"1": "tv_in1k", "2": "tv2_in1k"}.get(groups["version"], "tv*_in1k")]
    if not groups["net"]:
        yield f"resnet*.{tags[0]}"
        return
    for architecture in _translate(groups["net"]) or _same(groups["net"]):
        yield from (f"{architecture.partition('.')[0]}*.{tag}" for tag in tags)
        yield architecture


def _gigaflops(groups: dict[str, str]) -> str:
    """torchvision's `400mf` and `3_2gf` as timm's `004` and `032`."""
    number = float(groups["number"].replace("_", ".")) / (1000 if groups["unit"] == "mf" else 1)
    return f"{round(number * 10):03d}"


_WORD = "tiny|small|base|large|huge|giant"
_RULES: tuple[Rule, ...] = (
    # torchvision
    (rf"(?P<net>\w+?)_weights(?:[./](?:{_WEIGHTS}|default))?", _torchvision_weights),
    (rf"(?P<net>\w+)[./]{_WEIGHTS}", _torchvision_weights),
    (rf"(?P<net>){_WEIGHTS}", _torchvision_weights),
    (
        r"vit_(?P<size>[blh])_(?P<patch>\d+)",
        lambda g: [f"vit_{_SIZE[g['size']]}_patch{g['patch']}_224", f"vit_{_SIZE[g['size']]}_patch{g['patch']}_*"],
    ),
    (
        r"swin_v2_(?P<size>[tsb])",
        lambda g: [f"swinv2_{_SIZE[g['size']]}_window8_256"],
    ),
    (r"swin_(?P<size>[tsb])", lambda g: [f"swin_{_SIZE[g['size']]}_patch4_window7_224"]),
    (r"maxvit_t", lambda g: ["maxvit_tiny_tf_224"]),
    (
        r"regnet_(?P<kind>[xy])_(?P<number>\d+(?:_\d+)?)(?P<unit>[mg]f)",
        lambda g: [f"regnet{g['kind']}_{_gigaflops(g)}"],
    ),
    (r"mnasnet(?P<times>[01])_(?P<part>\d+)", lambda g: [f"mnasnet_{g['times']}{g['part']:0<2}"]),
    # torchvision, Keras and Hugging Face
    (
        r"(?:tf[-_])?efficientnet[-_]?v2[-_]?(?P<size>b[0-3]|s|m|l|xl)",
        lambda g: [f"tf_efficientnetv2_{g['size']}"],
    ),
    (r"mobilenet[-_]?v(?P<v>[12])(?:[-_](?P<times>[\d.]+))?(?:[-_]\d+)?", lambda g: [_mobilenet(g)]),
    (
        r"mobilenet[-_]?v3[-_]?(?P<size>large|small)(?:[-_](?P<times>\d\.\d+))?(?:[-_]\d+)?",
        lambda g: [f"mobilenetv3_{g['size']}_{round(100 * float(g['times'] or 1)):03d}"],
    ),
    # Keras
    (r"xception", lambda g: ["legacy_xception"]),
    (r"nasnet[-_]?large", lambda g: ["nasnetalarge"]),
    (r"resnet(?P<depth>\d+)v2", lambda g: [f"resnetv2_{g['depth']}"]),
    # CLIP: ViT-B/32, ViT-L/14@336px, RN50x4 (OpenAI); ViT-B-32/laion2b_s34b_b79k (OpenCLIP); clip-vit-base-patch32
    (r"vit-(?P<size>b|l)/(?P<patch>\d+)(?:@(?P<pixels>\d+)px)?", lambda g: _clip({**g, "tag": "openai"})),
    (
        rf"clip-vit-(?P<size>{_WORD})-patch(?P<patch>\d+)(?:-(?P<pixels>\d+))?",
        lambda g: _clip({**g, "tag": "openai"}),
    ),
    (
        r"(?P<clip>clip-)?vit-(?P<size>b|l|h|g|bigg)-(?P<patch>\d+)(?P<quick>-quickgelu)?(?:-(?P<pixels>\d{3}))?"
        r"(?P<quick_too>-quickgelu)?(?:[-/](?P<tag>(?!siglip).+))?",
        _clip,
    ),
    (
        r"(?P<net>resnet|rn)(?P<depth>50|101)(?P<times>x\d+)?(?P<quick>-quickgelu)?(?:/(?P<tag>.+))?",
        lambda g: _with_tag(f"resnet{g['depth']}{g['times']}_clip", g["tag"] or "openai") if g["net"] == "rn" else [],
    ),
    (
        r"eva02-(?P<size>b|l|e)-(?P<patch>\d+)(?P<plus>-plus)?(?:-(?P<pixels>\d{3}))?(?:/(?P<tag>.+))?",
        lambda g: [f"eva02_{_SIZE[g['size']]}_patch{g['patch']}_clip_{g['pixels'] or 224}.*"],
    ),
    # SigLIP: siglip2-base-patch16-224, ViT-SO400M-14-SigLIP-384/webli
    (
        rf"siglip(?P<second>2)?-(?P<size>{_WORD}|so400m|giant-opt)-patch(?P<patch>\d+)-(?P<pixels>\d+)(?P<rest>.*)",
        _siglip,
    ),
    (
        r"vit-(?P<size>b|l|so400m|gopt)-(?P<patch>\d+)-siglip(?P<second>2)?(?P<rest>-i18n)?(?:-(?P<pixels>\d+))?(?:/.+)?",
        _siglip,
    ),
    # DINO: dino_vits16, dinov2_vitb14_reg, dinov3_vits16; dinov2-with-registers-base, dinov3-convnext-tiny-...
    (
        rf"dino(?:v(?P<version>\d))?[-_](?P<registers>with[-_]registers[-_])?(?P<network>vit|convnext)?[-_]?"
        rf"(?P<size>{_WORD}|7b|[sblgh])(?P<patch>\d+)?(?P<plus>plus)?(?P<rest>(?:[-_].*)?)",
        _dino,
    ),
    # Hugging Face: google/vit-base-patch16-224-in21k, facebook/vit-mae-base, microsoft/swinv2-tiny-patch4-window8-256
    (
        rf"vit-(?P<size>{_WORD})-patch(?P<patch>\d+)-(?P<pixels>\d+)(?P<pretrained>-in21k)?",
        lambda g: [
            f"vit_{g['size']}_patch{g['patch']}_{g['pixels']}{tag}"
            for tag in (".orig_in21k" if g["pretrained"] else ".orig_in21k_ft_in1k", "")
        ],
    ),
    (rf"vit-mae-(?P<size>{_WORD})", lambda g: [f"vit_{g['size']}_patch*_224.mae"]),
    (
        rf"swinv2-(?P<size>{_WORD})-patch4-window(?P<window>\d+)-(?P<pixels>\d+)",
        lambda g: [f"swinv2_{g['size']}_window{g['window']}_{g['pixels']}"],
    ),
)


def _mobilenet(groups: dict[str, str]) -> str:
    return f"mobilenetv{groups['v']}_{round(100 * float(groups['times'] or 1)):03d}"


def _elsewhere(name: str) -> str:
    """The same name in the source that it seems to come from, where that source is one of ours."""
    network, _, weights = re.sub(r"_weights\b", "", name, flags=re.IGNORECASE).replace(".", "/").partition("/")
    if "torchvision" in SOURCES and network.lower() in _torchvision():
        return f"torchvision:{network.lower()}" + (f"/{weights}" if re.fullmatch(_WEIGHTS, weights.lower()) else "")
    forms = {
        "open_clip": r"(?:vit|eva02)-\w+-\d+[\w-]*/\w+|rn\d+(?:x\d+)?/\w+",
        "hf": r"(?!timm/)[a-z][\w-]+/[\w.-]{6,}",
    }
    found = (source for source, form in forms.items() if source in SOURCES and re.fullmatch(form, name.lower()))
    return next((f"{source}:{_shorten(name)}" for source in found), "")


@cache
def _torchvision() -> frozenset[str]:
    import torchvision  # type: ignore[import-untyped]  # timm needs it, and has imported it

    return frozenset(torchvision.models.list_models(module=torchvision.models))


def _near(name: str) -> list[str]:
    """The nearest names, of those here and of timm's; only the one that is the same but for case and hyphens."""
    wanted = _squeeze(name)
    if same := _same(name):
        return same
    known = _known()
    containing = [each for each in known if len(wanted) > 2 and wanted in each]
    containing.sort(key=lambda each: (not each.startswith(wanted), len(each), each))
    close = difflib.get_close_matches(wanted, known, n=NAMED, cutoff=0.7)
    found = [known[each] for each in dict.fromkeys([*containing, *close])][:NAMED]
    return found or (_near(name.partition("/")[2]) if "/" in name else [])


def _same(name: str) -> list[str]:
    """The name that is the same but for case, hyphens, underscores and dots."""
    found = _known().get(_squeeze(name))
    return [found] if found else []


@cache
def _known() -> dict[str, str]:
    """All names without tags, by what is left of them without case and punctuation."""
    return {_squeeze(name): name for name in (*timm.list_models(), *ALIASES, *CARDS)}


@cache
def _tags(architecture: str) -> tuple[str, ...]:
    return tuple(full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*"))


@cache
def _released() -> tuple[str, ...]:
    return tuple(timm.list_pretrained())


def _existing(globs: str) -> list[str]:
    """timm's names of shell patterns; those with a tag if it has one. All of them have weights."""
    return [
        name
        for glob in globs.split()
        for name in (_released() if "." in glob else dict.fromkeys(each.partition(".")[0] for each in _released()))
        if fnmatchcase(name, glob)
    ]


def _is_known(name: str) -> bool:
    architecture, _, tag = name.partition(".")
    return timm.is_model(architecture) and (not tag or tag in _tags(architecture))


def _squeeze(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name[:_LONGEST].lower())


def _pattern(name: str, near: Sequence[str]) -> str:
    """A shell pattern of the family that a name, or else the nearest one, seems to be of."""
    words = re.compile(r"[a-z]{3,}?(?=v?\d|[^a-z]|$)")
    families = (words.search(each.lower()) for each in (name.rpartition("/")[2], *near))
    patterns = (f"*{family[0]}*" for family in families if family)
    return next((each for each in patterns if _existing(each)), "clip*")


def _shorten(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
