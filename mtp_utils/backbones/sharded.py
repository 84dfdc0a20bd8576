"""Joint training of a backbone whose gradients and optimiser states are more than one device holds: FSDP2.

Where the processes were started so (accelerate/fsdp2.yaml), each of them holds its share of every decoder layer, of its gradients
and of the optimiser's states, and the rest (embeddings, final norm, LM head, heads) whole. The base model, in its own dtype, lies
whole on every device; so does, from its forward to its backward pass, the bfloat16 copy that autocast makes of a layer's weights.
"""

import gc
import os
import warnings

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from ..base import ranks
from ..base.refusals import CannotDo
from .wrapped import decoder


def asked() -> bool:
    """Whether the processes were started for it: several, and accelerate's configuration says FSDP."""
    return ranks.count() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def shard(root: torch.nn.Module, model) -> None:
    """Each process keeps its share of every decoder layer of a transformers model, in float32; a layer is whole only while it is
    computed, by calling `root`, a module around the decoder: transformers knows its own by their class, which FSDP2 changes.
    RuntimeError where it is not FSDP2 that was asked for, CannotDo where the layers are not found."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if os.environ.get("FSDP_VERSION") != "2":
        raise RuntimeError(f"FSDP_VERSION={os.environ.get('FSDP_VERSION')}: only FSDP2 is used, see accelerate/fsdp2.yaml")
    if not layers_of(model):
        raise CannotDo(f"{type(model).__name__} has no list of its layers, so they cannot be shared out")
    gc.collect()  # what was shared out before is in cycles
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # nothing here writes into one
    ranks.meet()
    mesh = init_device_mesh(model.device.type, (ranks.count(),))
    for layer in layers_of(model):
        fully_shard(layer.float(), mesh=mesh)
    fully_shard(root, mesh=mesh, ignored_params=set(by_kind(list(model.parameters()))[0]))


def layers_of(model) -> torch.nn.ModuleList:
    """The decoder layers of a transformers model; none where there is no one list of them."""
    n = model.config.get_text_config().num_hidden_layers
    found = [m for m in decoder(model).modules() if isinstance(m, torch.nn.ModuleList) and len(m) == n]
    return found[0] if found else torch.nn.ModuleList()


def by_kind(parameters) -> tuple[list, list]:
    """Those that this process holds whole, and those of which it holds a share: what can be summed and clipped at once."""
    whole, shares = ([p for p in parameters if isinstance(p, DTensor) == shared] for shared in (False, True))
    return whole, shares


def gathered(tensors: dict[str, torch.Tensor], copy: bool = True) -> dict[str, torch.Tensor]:
    """Copies of them (or, without `copy`, those that are there already), whole and in the main memory, in the first process;
    nothing in the others, which have to ask as well."""
    found = {}
    for name, tensor in tensors.items():
        tensor = whole(tensor)
        if ranks.first():
            found[name] = tensor.detach().to("cpu", copy=copy).contiguous()
    return found


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of it in every process; all have to ask at once."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_held(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A whole tensor as this process holds the parameter: its share where that is shared out, and nothing is sent."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    on = tensor.to(parameter.device)
    return distribute_tensor(on, parameter.device_mesh, parameter.placements, src_data_rank=None)
