"""Networks of transformers, saved by that library and read without it, compute what they compute there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from unmask.interop.weights_in import Wanted, import_weights

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,
}
SHARED = {"use_shared_relative_position_bias": True}


def saved(folder: Path, kind: str, **changes: Any) -> Any:
    """A network with random weights, away from what is usual at a start, saved as the library does it."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES | changes)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("ViT", {}),
        ("ViT", {"image_size": [16, 32], "num_channels": 1}),
        ("ViTMAE", {"mask_ratio": 0.0}),
        ("ViTMSN", {}),
        ("Beit", {"use_relative_position_bias": True}),
        ("Beit", SHARED | {"use_mean_pooling": False}),
        ("Beit", {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0, "use_mean_pooling": False}),
        ("Data2VecVision", SHARED),
        ("Dinov2", {"mlp_ratio": 2}),
        ("Dinov2WithRegisters", {"mlp_ratio": 2}),
    ],
)
def test_features_are_theirs(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model = saved(tmp_path, kind, **changes)
    imported = import_weights(str(tmp_path), Wanted())
    encoder = imported.encoder.encoder.eval()
    images_BCHW = torch.rand(2, changes.get("num_channels", 3), *encoder.image_size)
    # In their MAE noise decides which patches are dropped, and in what order those that stay are.
    order = {"noise": torch.arange(16.0).expand(2, -1)} if kind == "ViTMAE" else {}
    with torch.no_grad():
        theirs = model(images_BCHW, **order).last_hidden_state
        torch.testing.assert_close(encoder(images_BCHW), theirs, rtol=1e-5, atol=1e-5)
    assert set(imported.used) | set(imported.left_out) == set(load_file(tmp_path / "model.safetensors"))
    assert set(imported.left_out.values()) <= {"pooler, after the encoder", "mask token, which only pre-training needs"}


def test_a_head_around_the_encoder_is_left_out_and_normalisation_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES)).eval()
    torch.save(model.state_dict(), tmp_path / "in_memory.bin")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "vit.safetensors")
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.1, 0.2, 0.3]}')
    imported = import_weights(str(tmp_path / "vit.safetensors"), Wanted(source="transformers"))
    assert imported.encoder.mean == (0.5, 0.5, 0.5)
    assert imported.encoder.std == (0.1, 0.2, 0.3)
    assert set(imported.left_out) == {"classifier.weight", "classifier.bias"}
    images_BCHW = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        theirs = model.vit(images_BCHW).last_hidden_state
        torch.testing.assert_close(imported.encoder.encoder.eval()(images_BCHW), theirs, rtol=1e-5, atol=1e-5)


def test_older_and_divided_files_are_the_same(tmp_path: Path) -> None:
    saved(tmp_path, "ViT")
    expected = import_weights(str(tmp_path), Wanted()).encoder.encoder.network.state_dict()
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    table = {name: f"part-{index % 2}.safetensors" for index, name in enumerate(names)}
    for part in set(table.values()):
        save_file({name: tensors[name] for name in names if table[name] == part}, tmp_path / part)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table}))
    divided = import_weights(str(tmp_path), Wanted()).encoder.encoder.network.state_dict()
    index.unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    older = import_weights(str(tmp_path), Wanted()).encoder.encoder.network.state_dict()
    for state in (divided, older):
        assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_another_epsilon_is_said(tmp_path: Path) -> None:
    saved(tmp_path, "ViT", layer_norm_eps=1e-12)
    assert any("1e-12" in note for note in import_weights(str(tmp_path), Wanted()).notes)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "bert"}, "is of model type 'bert'"),
        ({"model_type": 3}, "is of model type 3"),
        ({"hidden_act": "relu"}, "only gelu is known"),
        ({"use_swiglu_ffn": True}, "gated MLPs"),
        ({"num_attention_heads": None}, "lacks or damages"),
        ({"patch_size": 0}, "have no patches of 0x0"),
        ({"image_size": 64}, "no grid of 8x8"),
        ({"num_attention_heads": 5}, "not divisible by its 5 heads"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_with_a_sentence(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    saved(tmp_path, "ViT")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=sentence):
        import_weights(str(tmp_path), Wanted())


def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "ViT")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no weights"):
        import_weights(str(tmp_path), Wanted())
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(ValueError, match="outside of its folder"):
        import_weights(str(tmp_path), Wanted())
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ValueError, match="not valid JSON"):
        import_weights(str(tmp_path), Wanted())
