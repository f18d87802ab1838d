"""Addresses and heads: what they read as, what they equal, what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.address import HOOK_SITES, At, Head, Site
from interp.errors import BadAddress, BadInput


@pytest.mark.parametrize(
    ("written", "head"),
    [
        ("5.3", Head(5, 3)),
        ("5.10", Head(5, 10)),
        ("L5H3", Head(5, 3)),
        ("L5.H3", Head(5, 3)),
        ("l5.h3", Head(5, 3)),
        ("a5.h3", Head(5, 3)),
        (" a12.h0 ", Head(12, 0)),
        ("vision.L5.H3", Head(5, 3, "vision")),
        ("vision/L5H3", Head(5, 3, "vision")),
        ("vision_2.5.3", Head(5, 3, "vision_2")),
        ((5, 3), Head(5, 3)),
        ([5, 3], Head(5, 3)),
        ((np.int64(5), np.int64(3)), Head(5, 3)),
        (Head(5, 3, "encoder"), Head(5, 3, "encoder")),
    ],
)
def test_a_head_reads_in_every_spelling(written: object, head: Head) -> None:
    found = Head.parse(written)  # type: ignore[arg-type]
    assert found == head
    assert all(type(part) is int for part in found[:2])


@pytest.mark.parametrize("head", [Head(0, 0), Head(5, 11), Head(5, 3, "vision"), Head(1, 2, "encoder")])
def test_what_a_head_prints_reads_back(head: Head) -> None:
    assert Head.parse(str(head)) == head


def test_a_head_prints_its_stack_only_off_the_default() -> None:
    assert (str(Head(5, 3)), str(Head(5, 3, "vision"))) == ("L5.H3", "vision.L5.H3")


@pytest.mark.parametrize(
    "bad", ["5", "L5", "53", "5.3.1.2", "5,3", "", "-1.3", "L5.H3x", (1,), (1, 2, 3), (1, 2.0), (True, 1), None]
)
def test_what_is_no_head_is_refused_with_the_spellings(bad: object) -> None:
    with pytest.raises(BadAddress, match=r"is not a head\. Write Head\(5, 3\)"):
        Head.parse(bad)  # type: ignore[arg-type]


def test_a_float_is_refused_because_5_1_and_5_10_are_one_number() -> None:
    with pytest.raises(BadAddress, match=r"a float cannot tell 5\.1 from 5\.10"):
        Head.parse(5.1)  # type: ignore[arg-type]


# ---- At -------------------------------------------------------------------------------------------------------------


def test_a_site_is_given_by_member_or_name() -> None:
    assert At("z") == At("Z") == At(Site.Z) != At(Site.Q)


def test_an_unknown_site_gets_near_matches() -> None:
    with pytest.raises(BadAddress, match=r"Unknown site 'patern'. Did you mean 'pattern'\?"):
        At("patern")


def test_an_int_layer_is_not_a_tuple_of_one() -> None:
    assert At("z", 3).layers == At("z", (3,)).layers == (3,)
    assert At("z", 3) != At("z", (3,))
    assert At("z").layers is None


def test_fields_are_kept_as_tuples_of_plain_ints_in_the_order_given() -> None:
    at = At("z", layer=np.array([4, 1]), heads=range(2, 4))
    assert (at.layer, at.heads) == ((4, 1), (2, 3))
    assert At("z", np.int64(2)) == At("z", 2) and type(At("z", np.int64(2)).layer) is int
    assert At("z", heads=np.int64(1)).heads == (1,)
    assert At("z", pos=np.int64(-1)) == At("z", pos=-1)


def test_equal_addresses_hash_alike_and_unequal_ones_differ() -> None:
    columns = torch.tensor([[0, 2], [1, 3]])
    pairs = [
        (At("z", 1, heads=2), At("z", 1, heads=(2,))),
        (At("z", pos=slice(1, None)), At("z", pos=slice(1, None))),
        (At("z", pos=columns), At("z", pos=columns.clone().int())),
        (At("z", pos="subject"), At("z", pos="subject")),
    ]
    for a, b in pairs:
        assert a == b and hash(a) == hash(b)
    different = [a for a, _ in pairs] + [
        At("z", 1),
        At("z", pos=slice(1, 2)),
        At("z", pos=columns + 1),
        At("z", pos=columns.view(1, 4)),
        At("z", pos=1),
        At("z", stack="vision"),
    ]
    assert len(set(different)) == len(different)
    assert At("z") != "z"


def test_repr_shows_what_was_given_and_nothing_else() -> None:
    assert repr(At(Site.Z)) == "At(Site.Z)"
    at = At(Site.PATTERN, 2, heads=(1, 0), pos=torch.zeros(2, 1, dtype=torch.long), stack="vision")
    assert repr(at) == "At(Site.PATTERN, layer=2, heads=(1, 0), pos=tensor[2, 1], stack='vision')"


def test_with_changes_one_field_and_leaves_the_first_alone() -> None:
    at = At("z", 1, heads=(0,), pos=-1)
    assert at.with_(pos=None) == At("z", 1, heads=(0,))
    assert at.pos == -1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"site": "resid_pre", "heads": 1}, "has no head axis"),
        ({"site": "z", "layer": ()}, "an empty list of layers or heads addresses nothing"),
        ({"site": "z", "heads": []}, "an empty list of layers or heads addresses nothing"),
        ({"site": "z", "layer": "3"}, r"layer='3': expected an int or a sequence of ints"),
        ({"site": "z", "layer": 1.0}, r"layer=1\.0: expected an int"),
        ({"site": "z", "layer": True}, r"layer=True: expected an int"),
        ({"site": "z", "layer": (1, 1)}, "names the same layer twice"),
        ({"site": "z", "heads": (2, 2)}, "names the same head twice"),
        ({"site": "z", "heads": (0.5,)}, r"heads=\(0\.5,\): expected an int"),
        ({"site": "z", "pos": 1.5}, r"pos=1\.5: expected None, an int, a slice"),
        ({"site": "z", "pos": [1, 2]}, r"pos=\[1, 2\]: expected None"),
        (
            {"site": "z", "pos": torch.tensor([1, 2])},
            r"expected a LongTensor \[batch, k\] of columns, got torch.int64 \[2\]",
        ),
        ({"site": "z", "pos": torch.ones(1, 2)}, "got torch.float32"),
        ({"site": "z", "pos": torch.ones(1, 2, dtype=torch.bool)}, "got torch.bool"),
    ],
)
def test_bad_fields_are_refused_with_what_came(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(BadAddress, match=message):
        At(**arguments)  # type: ignore[arg-type]


# ---- sites ----------------------------------------------------------------------------------------------------------


def test_every_site_names_its_axes_in_the_fixed_order() -> None:
    order = "batch layer head query key pos d_model d_head vocab".split()
    for site in Site:
        assert site.axes[0] == "batch"
        assert site.per_head == ("head" in site.axes)
        if "pos" not in site.axes:
            assert [order.index(axis) for axis in site.axes] == sorted(order.index(axis) for axis in site.axes)
    inside = {site for site in Site if site.inside_attention}
    assert inside == {Site.Q, Site.K, Site.V, Site.SCORES, Site.PATTERN}
    assert {site for site in Site if not site.per_head} == {
        Site.RESID_PRE, Site.RESID_MID, Site.RESID_CROSS, Site.RESID_POST, Site.ATTN_RAW, Site.ATTN_OUT, Site.MLP_OUT,
    }  # fmt: skip


# ---- hook names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("blocks.5.attn.hook_z", At(Site.Z, 5)),
        ("blocks.5.attn.hook_pattern", At(Site.PATTERN, 5)),
        ("blocks.0.attn.hook_attn_scores", At(Site.SCORES, 0)),
        ("blocks.0.attn.hook_rot_q", At(Site.Q, 0)),
        ("blocks.11.hook_resid_post", At(Site.RESID_POST, 11)),
        ("blocks.1.hook_mlp_out", At(Site.MLP_OUT, 1)),
        ("encoder_blocks.2.attn.hook_z", At(Site.Z, 2, stack="encoder")),
        ("decoder_blocks.2.self_attn.hook_z", At(Site.Z, 2, stack="decoder")),
        ("decoder_blocks.2.cross_attn.hook_z", At(Site.Z, 2, stack="cross")),
    ],
)
def test_hook_names_are_translated_at_the_door(name: str, at: At) -> None:
    assert At.parse(name) == at


def test_every_known_hook_name_parses() -> None:
    assert {At.parse(f"blocks.3.{hook}").site for hook in HOOK_SITES} == set(HOOK_SITES.values())


@pytest.mark.parametrize("bad", ["blocks.5.attn.hook_zz", "blocks.x.attn.hook_z", "z", "blocks.5.hook_z.more", ""])
def test_another_text_is_refused_with_an_example(bad: str) -> None:
    with pytest.raises(BadAddress, match=r"is not an address\. Write At\(Site\.Z, layer=5\)"):
        At.parse(bad)


def test_parse_takes_addresses_and_sites_and_nothing_else() -> None:
    at = At("q", 1)
    assert At.parse(at) is at and At.parse(Site.Q) == At(Site.Q)
    with pytest.raises(BadInput, match="5 is not an address"):
        At.parse(5)  # type: ignore[arg-type]
