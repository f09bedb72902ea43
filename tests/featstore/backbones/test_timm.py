"""timm's networks: of a member of every family, our features and layers are those of timm's own network."""

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import _registry
from torch import nn

from featstore.backbones import Output, Weights, find_card
from featstore.backbones.fitting import fit
from featstore.backbones.networks import Network, build_network
from featstore.backbones.shapes import layers_of, shape_of, takes
from featstore.backbones.sources import find_source
from featstore.errors import BackboneError, UnfitBackboneError, WeightsError
from featstore.extraction.pipeline import make_frames
from featstore.photos.decoding import EncodedPhoto
from featstore.photos.views import GRID, WHOLE, View

from .released import CLOSE, apart, load_as_released, no_init, noise, normalise, own_feature, released

MEMBERS = """
beit_base_patch16_224.in22k_ft_in22k botnet26t_256.c1_in1k mobileone_s1.apple_in1k cait_xxs24_224.fb_dist_in1k
coat_tiny.in1k convit_tiny.fb_in1k convmixer_768_32.in1k convnext_atto.d2_in1k cpubone_nano.r224_in1k
crossvit_tiny_240.in1k csatv2.r512_in1k cs3darknet_focus_s.ra4_e3600_r256_in1k cspnext_tiny.rsb_a1_in1k
davit_tiny.msft_in1k deit_tiny_patch16_224.fb_in1k deit_tiny_distilled_patch16_224.fb_in1k
deit3_small_patch16_224.fb_in1k densenet121.ra_in1k dla34.in1k dpn68.mx_in1k
edgenext_xx_small.in1k efficientformer_l1.snap_dist_in1k efficientformerv2_s0.snap_dist_in1k tinynet_c.in1k
efficientvim_m1.e300_in1k efficientvit_b0.r224_in1k efficientvit_m0.r224_in1k eva02_tiny_patch14_224.mim_in22k
fasternet_t0.in1k fastvit_t8.apple_in1k focalnet_tiny_srf.ms_in1k gcvit_xxtiny.in1k ghostnet_100.in1k
hardcorenas_b.miil_green_in1k hgnetv2_b0.ssld_stage1_in22k_in1k hiera_tiny_224.mae hrnet_w18_small.gluon_in1k
iformer_s.in1k inception_next_atto.sail_in1k inception_resnet_v2.tf_in1k inception_v3.tf_in1k inception_v4.tf_in1k
lcnetv2_small.paddle_in1k levit_128.fb_dist_in1k lowformer_b0.in1k mambaout_femto.in1k
maxvit_nano_rw_256.sw_in1k caformer_s18.sail_in1k gmlp_s16_224.ra3_in1k mobilenetv3_small_050.lamb_in1k
mobilenetv4_conv_small.e2400_r224_in1k mobilevit_xxs.cvnets_in1k mvitv2_tiny.fb_in1k nest_tiny_jx.goog_in1k
nextvit_small.bd_in1k test_nfnet.r160_in1k pit_ti_224.in1k pit_ti_distilled_224.in1k pvt_v2_b0.in1k
rdnet_tiny.nv_in1k regnetx_002.pycls_in1k
repghostnet_050.in1k repvit_m1.dist_in1k res2next50.in1k resnest14d.gluon_in1k test_resnet.r160_in1k
resnetv2_18.ra4_e3600_r224_in1k rexnet_100.nav_in1k selecsls60.in1k legacy_seresnet18.in1k sequencer2d_s.in1k
shvit_s1.in1k skresnet18.ra_in1k starnet_s1.in1k swiftformer_xs.dist_in1k swin_tiny_patch4_window7_224.ms_in1k
swinv2_tiny_window8_256.ms_in1k swinv2_cr_tiny_ns_224.sw_in1k tiny_vit_5m_224.dist_in22k
tnt_s_legacy_patch16_224.in1k tresnet_m.miil_in1k twins_svt_small.in1k vgg11.tv_in1k visformer_tiny.in1k
test_vit.r160_in1k vit_small_patch14_reg4_dinov2.lvd142m vit_base_patch16_clip_224.openai
vit_base_patch16_siglip_224.webli vit_pe_core_tiny_patch16_384.fb vit_small_r26_s32_224.augreg_in21k
vit_srelpos_small_patch16_224.sw_in1k ese_vovnet19b_dw.ra_in1k xception41p.ra3_in1k legacy_xception.tf_in1k
xcit_nano_12_p16_224.fb_dist_in1k volo_d1_224.sail_in1k
""".split()  # noqa: SIM905
"""At least one of every family with weights, most of them among the smallest; those that went wrong as well."""
TOO_LARGE = {
    "deepseek_vit", "gemma4_vit", "hieradet_sam2", "mobilenetv5", "naflexvit", "nasnet", "pnasnet", "qwen3_vit",
    "vision_transformer_sam", "vitamin",
}  # fmt: skip
"""Families whose smallest member takes a minute here; tests/bench/backbones.py goes over these too."""


def family(name: str) -> str:
    return str(_registry.model_entrypoint(name.partition(".")[0]).__module__.rpartition(".")[2])


def test_no_family_is_forgotten() -> None:
    with_weights = {family(tag) for tag in timm.list_pretrained()}
    assert with_weights - TOO_LARGE == {family(tag) for tag in MEMBERS}


@pytest.mark.parametrize("tag", MEMBERS)
def test_a_member_of_every_family_gives_timms_own_feature_and_layers(tag: str, tmp_path: Path) -> None:
    """From weights as released, in a file; on pixels, and the whole way from a JPEG."""
    state = released(tag, fast=True).state_dict()
    card = find_card(tag)
    with no_init():
        layers = layers_of(card)
        some = [layers[0], layers[-1]] if layers else []
        outputs = (Output(), *(Output(layer, "avg") for layer in some))
        network = load_as_released(tag, state, tmp_path / "released.safetensors", outputs)
    blocks = noise(tag)
    own, *of_layers = network(blocks)
    theirs = own_feature(tag, state, normalise(tag, blocks))
    assert apart(own, theirs) < CLOSE
    height, width = blocks.shape[1:3]
    for output, feature in zip(outputs, network(blocks), strict=True):
        assert shape_of(card, output, (width, height)) == (1, feature.shape[1])
    with torch.inference_mode():
        for layer, feature in zip(some, of_layers, strict=True):
            (found,) = network.net.forward_intermediates(
                normalise(tag, blocks), indices=[layers.index(layer)], intermediates_only=True
            )
            assert apart(feature, found.flatten(2).mean(-1)) < CLOSE, layer

    file = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 80, 3)).astype(np.uint8)).resize((640, 480)).save(file, "JPEG")
    view = find_source(card.source).view(card)
    frames = make_frames(EncodedPhoto(file.getvalue()), [view], b"")
    (from_jpeg, *_) = network(torch.from_numpy(frames[view]))
    facts = timm.get_pretrained_cfg(tag)
    assert facts is not None
    transform = create_transform(**resolve_data_config(pretrained_cfg=facts.to_dict()))
    pixels = transform(Image.open(file).convert("RGB"))[None]  # type: ignore[index]
    assert apart(from_jpeg, own_feature(tag, state, pixels)) < CLOSE


# ---- what else can be had of a network


VIT = "test_vit.r160_in1k"


def network_of(tag: str, *outputs: Output) -> Network:
    return build_network(find_card(tag), Weights("random", seed=0), outputs)


def test_class_token_patches_and_layers_of_a_transformer() -> None:
    outputs = [Output(pooling=each) for each in ("own", "cls", "avg", "max", "tokens")]
    network = network_of(VIT, *outputs, Output("blocks.2", "cls"), Output("blocks.2", "tokens"))
    blocks = noise(VIT, 2)
    own, cls, avg, most, tokens, layer_cls, layer_tokens = network(blocks)
    net, pixels = network.net, normalise(VIT, blocks)
    last = net.forward_features(pixels)  # type: ignore[operator]
    n = net.num_prefix_tokens
    assert isinstance(n, int)
    assert apart(cls, last[:, 0]) < CLOSE
    assert apart(tokens, last[:, n:]) < CLOSE
    assert apart(avg, last[:, n:].mean(1)) < CLOSE
    assert apart(most, last[:, n:].amax(1)) < CLOSE
    assert apart(own, net(pixels)) < CLOSE
    (found, prefix), = net.forward_intermediates(  # type: ignore[operator]
        pixels, indices=[2], return_prefix_tokens=True, intermediates_only=True
    )  # fmt: skip
    assert apart(layer_cls, prefix[:, 0]) < CLOSE
    assert apart(layer_tokens, found.flatten(2).transpose(1, 2)) < CLOSE


def test_all_layers_come_from_one_pass() -> None:
    card = find_card("test_resnet")
    network = network_of("test_resnet", Output(), *(Output(layer, "avg") for layer in layers_of(card)))
    calls = []
    network.net.layer1.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr, operator]
    found = network(noise("test_resnet.r160_in1k"))
    assert len(calls) == 1
    assert layers_of(card) == ("act1", "layer1", "layer2", "layer3", "layer4")
    widths = [info["num_chs"] for info in network.net.feature_info]  # type: ignore[union-attr]
    assert [each.shape[1] for each in found] == [96, *widths]


@pytest.mark.parametrize(
    ("backbone", "output", "told"),
    [
        ("test_resnet", Output(pooling="cls"), "'test_resnet' cannot give 'cls': it has no class token"),
        ("pit_ti_224", Output(pooling="avg"), "keeps the class token only; say own or cls"),
        ("efficientvim_m1", Output(pooling="avg"), "its last layer is no map of features; say own"),
        (
            "gemma4_vit_167m_enc",
            Output(),
            "'gemma4_vit_167m_enc': it makes no vector of a picture; say avg, max or tokens",
        ),
        ("test_resnet", Output("layer9", "avg"), "has no layer 'layer9'; did you mean 'layer"),
    ],
)
def test_what_a_network_does_not_have_is_said(backbone: str, output: Output, told: str) -> None:
    with pytest.raises(BackboneError, match=re.escape(told)):
        shape_of(find_card(backbone), output, find_source("timm").view(find_card(backbone)).size)


def test_a_network_of_one_size_says_so_and_can_be_told_to_take_others() -> None:
    card = find_card(VIT)
    assert takes(card, (160, 160))
    assert not takes(card, (150, 100))
    with pytest.raises(UnfitBackboneError, match="cannot take pictures of 150x100 pixels"):
        shape_of(card, Output(), (150, 100))
    other = find_source("timm").with_any_size(card)
    assert other is not None
    assert takes(other, (320, 160))
    assert other.facts() == {**card.facts(), "options": {"dynamic_img_size": True}}
    same = [build_network(each, Weights("random", seed=0))(noise(VIT))[0] for each in (card, other)]
    assert apart(*same) < CLOSE, "at its own size nothing changes"


def test_a_view_of_blocks_is_brought_to_a_network_that_takes_one_size() -> None:
    swin = find_card("swin_tiny_patch4_window7_224")
    card, view, told = fit(swin, GRID)
    assert (card, view) == (swin, replace(GRID, block=(224, 224)))
    assert told.endswith("takes pictures of 224x224 only: blocks of 150x100 are resized to that")
    assert fit(find_card("gmlp_s16_224"), WHOLE)[1] == replace(WHOLE, size=(224, 224))
    deit = find_card("deit_tiny_patch16_224")
    card, view, told = fit(deit, View((320, 192)))
    assert (card.options, view) == ((("dynamic_img_size", True),), View((320, 192)))
    assert told.endswith("gets its positions interpolated for pictures of 320x192")
    encoder = find_card("mobilenetv5_300m_enc")  # makes no vector, and takes any size
    assert fit(encoder, WHOLE) == (encoder, WHOLE, "")
    assert fit(find_card("convnext_atto"), GRID) == (find_card("convnext_atto"), GRID, "")


# ---- weights that do not fit


def test_weights_that_leave_something_out_are_refused(tmp_path: Path) -> None:
    state = released("test_vit2.r160_in1k").state_dict()
    for wrong, told in (
        ({name: value for name, value in state.items() if "blocks.1.mlp" not in name}, r"\d missing \(blocks\.1\.mlp"),
        ({**state, "blocks.99.mlp.fc1.weight": torch.zeros(2)}, r"1 not of this network \(blocks\.99"),
        ({**state, "blocks.0.attn.proj.bias": torch.zeros(3)}, "1 of another shape"),
    ):
        with pytest.raises(WeightsError, match=told):
            load_as_released("test_vit2.r160_in1k", wrong, tmp_path / "wrong.safetensors")


def test_a_classifier_in_the_file_is_left_out_and_one_that_is_lacking_not_missed(tmp_path: Path) -> None:
    tag = "test_convnext.r160_in1k"
    state = released(tag).state_dict()
    whole = load_as_released(tag, state, tmp_path / "whole.safetensors")
    headless = {name: value for name, value in state.items() if not name.startswith("head.fc.")}
    assert len(headless) < len(state)
    other = load_as_released(tag, headless, tmp_path / "headless.safetensors")
    assert torch.equal(whole(noise(tag))[0], other(noise(tag))[0])


def test_loading_leaves_torch_as_it_was(tmp_path: Path) -> None:
    before = nn.Module.load_state_dict
    load_as_released(VIT, released(VIT).state_dict(), tmp_path / "vit.safetensors")
    assert nn.Module.load_state_dict is before


def test_weights_are_in_memory_once(tmp_path: Path) -> None:
    network = load_as_released(VIT, released(VIT).state_dict(), tmp_path / "vit.safetensors")
    assert not network.net.pretrained_cfg.get("state_dict")
