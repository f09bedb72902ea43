"""A name that no network has is answered with timm's, or with near ones: never with one that does not exist."""

import re
import time

import pytest
import timm

from featstore.backbones import CARDS, BackboneName, find_card
from featstore.backbones.names import unknown_backbone
from featstore.backbones.registry import ALIASES
from featstore.config import Config
from featstore.errors import BackboneError

TRANSLATED = """
vit_b_16                                  vit_base_patch16_224
ViT_L_32_Weights.IMAGENET1K_V1            vit_large_patch32_224
ResNet50_Weights.IMAGENET1K_V2            resnet50.tv2_in1k
ResNet50_Weights.IMAGENET1K_V1            resnet50.tv_in1k
resnet50/IMAGENET1K_V2                    resnet50.tv2_in1k
RegNet_Y_400MF_Weights.IMAGENET1K_V2      regnety_004.tv2_in1k
regnet_x_3_2gf                            regnetx_032
swin_t                                    swin_tiny_patch4_window7_224
swin_v2_b                                 swinv2_base_window8_256
efficientnet_v2_s                         tf_efficientnetv2_s
mobilenet_v3_large                        mobilenetv3_large_100
mnasnet1_0                                mnasnet_100
ViT-B/32                                  vit_base_patch32_clip_224.openai
ViT-L/14@336px                            vit_large_patch14_clip_336.openai
RN50                                      resnet50_clip.openai
RN50x4                                    resnet50x4_clip.openai
dino_vits16                               vit_small_patch16_224.dino
dinov2_vits14                             vit_small_patch14_dinov2.lvd142m
dinov2_vitb14_reg                         vit_base_patch14_reg4_dinov2.lvd142m
DINOv2-small                              vit_small_patch14_dinov2.lvd142m
dinov3_vits16                             vit_small_patch16_dinov3.lvd1689m
dinov3_vith16plus                         vit_huge_plus_patch16_dinov3.lvd1689m
facebook/dinov3-convnext-base-pretrain-lvd1689m  convnext_base.dinov3_lvd1689m
facebook/dinov2-small                     vit_small_patch14_dinov2.lvd142m
facebook/dinov2-with-registers-large      vit_large_patch14_reg4_dinov2.lvd142m
facebook/convnext-base-224-22k-1k         convnext_base
facebook/vit-mae-base                     vit_base_patch16_224.mae
openai/clip-vit-base-patch32              vit_base_patch32_clip_224.openai
google/siglip-base-patch16-224            vit_base_patch16_siglip_224.webli
google/siglip2-so400m-patch14-384         vit_so400m_patch14_siglip_378.v2_webli
google/vit-base-patch16-224               vit_base_patch16_224.orig_in21k_ft_in1k
google/vit-base-patch16-224-in21k         vit_base_patch16_224.orig_in21k
google/mobilenet_v2_1.0_224               mobilenetv2_100
microsoft/resnet-50                       resnet50
microsoft/swinv2-tiny-patch4-window8-256  swinv2_tiny_window8_256
timm/resnet50.a1_in1k                     resnet50.a1_in1k
hf_hub:timm/resnet50.a1_in1k              resnet50.a1_in1k
ViT-B-32/laion2b_s34b_b79k                vit_base_patch32_clip_224.laion2b
ViT-L-14/datacomp_xl_s13b_b90k            vit_large_patch14_clip_224.datacompxl
ViT-H-14-378-quickgelu/dfn5b              vit_huge_patch14_clip_quickgelu_378.dfn5b
laion/CLIP-ViT-B-32-laion2B-s34B-b79K     vit_base_patch32_clip_224.laion2b
ViT-B-16-SigLIP2/webli                    vit_base_patch16_siglip_224.v2_webli
EVA02-B-16/merged2b_s8b_b131k             eva02_base_patch16_clip_224.merged2b
Xception                                  legacy_xception
InceptionV3                               inception_v3
EfficientNetB0                            efficientnet_b0
NASNetLarge                               nasnetalarge
ResNet50V2                                resnetv2_50
ResNet50                                  resnet50
RESNET50                                  resnet50
LITE0                                     tf_efficientnet_lite0
resnet50.A1_IN1K                          resnet50.a1_in1k
"""
SEVERAL = {
    "dinov2": "dinov2_small",
    "vit-b-16": "vit_base_patch16_clip_224.openai",
    "ViT-B-32": "vit_base_patch32_clip_224.openai",
    "IMAGENET1K_V1": "resnet50.tv_in1k",
    "ResNet50_Weights.DEFAULT": "resnet50.tv2_in1k",
    "resnett50": "resnet50",
    "clip": "resnet50_clip",
    "vit_base": "vit_base_patch8_224",
    "apple/mobilevit-small": "mobilevit_s",
    "resnet50.a9_in1k": "resnet50.a1_in1k",
    "timm/resnet50.a9_in1k": "resnet50.a1_in1k",
}


def answered(message: str) -> list[str]:
    """The names that a message says, without those of the command that lists others."""
    said = re.sub(r"\(`featstore backbones.*?\)", "", message.partition("; ")[2])
    return [each for each in re.findall(r"[a-z0-9_]+(?:\.[a-z0-9_]+)?", said) if _is_there(each)]


def _is_there(name: str) -> bool:
    architecture, _, tag = name.partition(".")
    return name in ALIASES or (
        timm.is_model(architecture) and (not tag or name in timm.list_pretrained(f"{architecture}.*"))
    )


@pytest.mark.parametrize("line", TRANSLATED.strip().splitlines())
def test_names_of_other_libraries_are_answered_with_those_of_timm(line: str) -> None:
    theirs, ours = line.split()
    assert f"timm calls it {ours}" in str(unknown_backbone(theirs))
    assert _is_there(ours)


@pytest.mark.parametrize("name", SEVERAL)
def test_five_near_names_at_most_and_timm_has_each(name: str) -> None:
    message = str(unknown_backbone(name))
    names = answered(message)
    assert SEVERAL[name] in names
    assert len(set(names)) <= 5
    assert len(message) < 400


@pytest.mark.parametrize("name", ["", "é", "a" * 100_000, "zzzzzz", "../../etc", "x/y/z", "resnet50.", "(((", "%s"])
def test_anything_else_gets_a_short_answer_at_once(name: str) -> None:
    timm.list_models()
    started = time.process_time()
    message = str(unknown_backbone(name))
    assert time.process_time() - started < 1
    assert "backbone" in message
    assert len(message) < 600


def test_an_unknown_tag_is_answered_with_five_that_there_are_and_how_to_list_the_others() -> None:
    message = str(unknown_backbone("resnet50.a9_in1k"))
    assert "has no weights 'a9_in1k'" in message
    assert "featstore backbones 'resnet50.*'" in message
    assert re.search(r"and \d+ more", message)
    assert "takes no tag" in str(unknown_backbone("vit_large_patch14_224.x"))


def test_the_activation_that_openai_trained_with_is_named() -> None:
    assert "vit_base_patch16_clip_quickgelu_224.openai with the activation" in str(unknown_backbone("ViT-B/16"))


@pytest.mark.parametrize(
    ("typed", "timms"),
    [
        ("ViT-L/14@336px", "vit_large_patch14_clip_336.openai"),
        ("ViT-B/32:avg", "vit_base_patch32_clip_224.openai"),
        ("facebook/dinov2-small@whole", "vit_small_patch14_dinov2.lvd142m"),
        ("hf_hub:timm/resnet50.a1_in1k", "resnet50.a1_in1k"),
    ],
)
def test_a_slash_or_an_at_of_theirs_is_no_layer_and_no_view(typed: str, timms: str) -> None:
    with pytest.raises(BackboneError, match=f"timm calls it {re.escape(timms)}"):
        Config().segments(typed, default_view="whole")


def test_names_that_exist_are_found() -> None:
    for card in CARDS.values():
        assert find_card(BackboneName.parse(card.name).backbone) is card
