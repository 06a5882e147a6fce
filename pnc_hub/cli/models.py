"""A model as it is named on the command line: by its name, its weights on disk and its constructor arguments."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pnc_hub.cli import common, completion
from pnc_hub.errors import SourceError, TargetError

if TYPE_CHECKING:
    from torch import nn

    from pnc_hub.hub.clone import Clone

Command = Callable[..., Any]


def _json_object(_ctx: click.Context, _param: click.Parameter, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"a JSON object is needed ({error})") from error
    if not isinstance(value, dict):
        raise click.BadParameter(f"a JSON object is needed, such as '{{\"num_classes\": 10}}'; found {text!r:.80}")
    return {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}


_arguments = functools.partial(
    click.option,
    default="{}",
    metavar="JSON",
    callback=_json_object,
    help="Its constructor arguments, such as '{\"num_classes\": 10}'.",
)
arguments = _arguments("--model-args")


@dataclass(frozen=True)
class Model:
    """A timm model as named on the command line; ``role`` is the option that named it."""

    role: str
    name: str | None
    checkpoint: Path | None
    arguments: dict[str, Any]

    def build(self) -> nn.Module:
        """The model with its weights, in eval mode: those of the checkpoint if there is one, else those that timm has.

        Raises:
            SourceError, TargetError: timm cannot make it.
        """
        from pnc_hub.cloning.named import timm_model

        kind = SourceError if self.role == "source" else TargetError
        if not self.checkpoint:
            return timm_model(str(self.name), kind, **{**self.arguments, "pretrained": True})
        hint = (
            f"if the weights in {self.checkpoint} belong to another number of classes or another size, say so, as in"
            f" --{self.role}-args '{{\"num_classes\": 10}}'"
        )
        return timm_model(str(self.name), kind, hint, **{**self.arguments, "checkpoint_path": str(self.checkpoint)})

    @property
    def structure(self) -> dict[str, Any]:
        """The arguments that the architecture was built with, without those that only describe its weights."""
        return {name: value for name, value in self.arguments.items() if not name.startswith("pretrained_cfg")}

    def license(self, model: nn.Module) -> str | None:
        """What timm knows of the licence of its weights."""
        from pnc_hub.models.classifier import pretrained_cfg

        return None if self.checkpoint else pretrained_cfg(model).get("license")

    def hub_id(self, model: nn.Module) -> str | None:
        """Where the weights are on the Hub, if that is where they came from."""
        from pnc_hub.cloning.named import hub_id_of

        return None if self.checkpoint else hub_id_of(str(self.name), model)

    def or_target_of(self, clone: Clone) -> Model:
        """This one; where it has no name, the first target that ``clone`` was made for.

        Raises:
            TargetError: the clone does not say which that is.
        """
        if self.name:
            return self
        target = next((adapter.target for adapter in clone.config.adapters if adapter.target is not None), None)
        if target and self.checkpoint and target.architecture:
            arguments = {"num_classes": target.num_classes, **self.arguments}
            return replace(self, name=target.architecture, arguments=arguments)
        if target and target.hub_id:
            at = f"@{target.revision}" if target.revision else ""
            return replace(self, name=f"hf-hub:{target.hub_id}{at}")
        recorded = (
            f"only its architecture, {target.architecture}, is recorded" if target else "it fits any, at the input"
        )
        raise TargetError(
            f"{clone!r} does not name the model that it was made for ({recorded}): give a timm name with"
            f" --{self.role}, and --checkpoint where the weights are not timm's own"
        )


def named(role: str, text: str, *, argument: bool = False, required: bool = True) -> Callable[[Command], Command]:
    """Options that name a model; the command gets a ``Model`` as its parameter ``role``.

    Args:
        role: what it is called: ``source``, ``target`` or ``model``.
        text: what it is, for the help.
        argument: it is named by an argument, not by an option.
        required: it must be named.
    """
    weights = "checkpoint" if role == "model" else f"{role}-checkpoint"
    naming = (
        click.argument(role, shell_complete=completion.models)
        if argument
        else click.option(f"--{role}", required=required, metavar="NAME", help=text, shell_complete=completion.models)
    )
    on_disk = f"Weights of the {role} on disk (.safetensors, .pth), if not timm's own."
    options = (naming, click.option(f"--{weights}", type=common.FILE, help=on_disk), _arguments(f"--{role}-args"))

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def called(**given: Any) -> Any:
            parts = (given.pop(name) for name in (role, weights.replace("-", "_"), f"{role}_args"))
            return command(**{role: Model(role, *parts)}, **given)

        return functools.reduce(lambda decorated, option: option(decorated), reversed(options), called)

    return decorate


of_clone = named("model", "Model to attach it to; by default the first that it was made for.", required=False)
