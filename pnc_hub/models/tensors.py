"""Parameters and buffers of a module by name: listed, replaced, and made smaller as structured pruning does."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pnc_hub.errors import InsertionPointError

# The integer attributes that a layer keeps of its width, and that structured pruning therefore changes.
WIDTH_ATTRIBUTES = (
    *("in_channels", "out_channels", "groups", "in_features", "out_features"),
    *("num_features", "num_channels", "normalized_shape", "num_heads", "attn_dim"),
)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, the non-persistent ones too: without them a tail on the meta device cannot run.

    The names and their order are those of ``named_parameters`` and ``named_buffers``, which take three times as long.
    """
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    seen: set[int] = set()

    def visit(layer: nn.Module, path: str) -> None:
        if id(layer) in seen:
            return
        seen.add(id(layer))
        for tensors, named in ((layer._parameters, parameters), (layer._buffers, buffers)):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    named[path + name] = tensor
        for name, child in layer._modules.items():
            if child is not None:
                visit(child, f"{path}{name}.")

    visit(module, "")
    return {**parameters, **buffers}


def put_tensors(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Replace every parameter and buffer of ``module`` by the tensor of that name; parameters come out frozen.

    One that two layers share has the first of its names alone, as in ``tensors_of``; they share the new one too.
    """
    names = {id(tensor): name for name, tensor in tensors_of(module).items()}
    parameters: dict[str, nn.Parameter] = {}
    for layer in module.modules():
        for attribute, old in layer._parameters.items():
            if old is not None:
                name = names[id(old)]
                layer._parameters[attribute] = parameters.setdefault(name, nn.Parameter(tensors[name], False))
        for attribute, buffer in layer._buffers.items():
            if buffer is not None:
                layer._buffers[attribute] = tensors[names[id(buffer)]]


def attributes_of(module: nn.Module) -> dict[str, dict[str, int]]:
    """The width attributes of every layer that has any, by layer name."""
    widths = {}
    for name, layer in module.named_modules():
        own = vars(layer)
        values = ((attribute, _as_int(own[attribute])) for attribute in WIDTH_ATTRIBUTES if attribute in own)
        if found := {attribute: value for attribute, value in values if value is not None}:
            widths[name] = found
    return widths


def shrink(module: nn.Module, shapes: dict[str, list[int]], attributes: dict[str, dict[str, int]]) -> None:
    """Give tensors of ``module`` (on the meta device) smaller shapes, and its layers the widths that go with them.

    Raises:
        InsertionPointError: a name is not there, or a size is larger than the architecture's.
    """
    tensors, widths = tensors_of(module), attributes_of(module)
    for name, shape in shapes.items():
        full = tuple(tensors[name].shape) if name in tensors else None
        fits = full is not None and len(shape) == len(full)
        if not fits or not all(1 <= new <= old for new, old in zip(shape, full or (), strict=True)):
            raise InsertionPointError(f"tensor {name!r} after the cut cannot have shape {shape}; it has {full}")
    for name, values in attributes.items():
        widest = widths.get(name, {})
        if not widest or not all(1 <= value <= widest.get(attribute, 0) for attribute, value in values.items()):
            raise InsertionPointError(f"layer {name!r} after the cut cannot have the widths {values}; it has {widest}")
        layer = module.get_submodule(name)
        for attribute, value in values.items():
            setattr(layer, attribute, (value,) if isinstance(getattr(layer, attribute), tuple) else value)
    put_tensors(module, {**tensors, **{name: tensors[name].new_empty(shape) for name, shape in shapes.items()}})


def _as_int(value: Any) -> int | None:
    value = value[0] if isinstance(value, tuple) and len(value) == 1 else value
    return value if isinstance(value, int) and not isinstance(value, bool) else None
