"""Hidden states and attention weights of a model, under the names that transformers has for them."""

import keras
from keras import ops

from kerasllm.arguments import shown
from kerasllm.generation.programs import Programs
from kerasllm.layers.collecting import collecting
from kerasllm.layers.encoder_decoder import RecurrentDecoder, RecurrentEncoder
from kerasllm.layers.transformer import SharedEncoder


def inspected(model, inputs):
    """What `Model.inspect` returns, for checked inputs."""
    return keras.tree.map_structure(lambda x: x.astype("float32"), Programs.of(model).outputs(inputs, states))


def read_inputs(model, inputs):
    """The inputs of a model as a dict that has all of them."""
    if not isinstance(inputs, dict) or not set(model.input) <= set(inputs):
        raise ValueError(f"inputs ({shown(inputs)}) must be a dict of {', '.join(model.input)}.")
    known = {*model.input, *(["position_ids"] if model.reads_documents else [])}
    for name in inputs:
        if name not in known:
            raise ValueError(f"inputs: {shown(name)} must be one of {', '.join(sorted(known))}.")
    return inputs


def states(model, inputs):
    """One pass of a model: dict name -> list of tensors."""
    with collecting() as found:
        model(inputs, training=False)
    encoder, decoder = (getattr(model, name, None) for name in ("encoder", "decoder"))
    is_shared = isinstance(encoder, SharedEncoder)  # then its passes are the decoder's: the encoder's is the first
    results = {}
    for side, layer, turn in (("encoder", decoder if is_shared else encoder, 0), ("decoder", decoder, int(is_shared))):
        if layer is not None:
            prefix = f"{side}_" if encoder is not None and decoder is not None else ""
            results |= _of_layer(found, layer, turn, prefix)
    if getattr(model, "attention", None):  # of a recurrent language model, over its last layer
        results["attentions"] = found[id(model.attention), "attentions"]
    return keras.tree.map_structure(lambda x: ops.cast(x, "float32"), results)


def _of_layer(found, layer, turn, prefix):
    """What the `turn`-th pass of an encoder or decoder has collected."""
    hidden_states = found[id(layer), "hidden_states"]
    if isinstance(layer, RecurrentEncoder | RecurrentDecoder):
        results = {f"{prefix}hidden_states": hidden_states}
        if prefix != "decoder_":  # which is told of no padding, as it changes nothing before it
            results[f"{prefix}last_states"] = found[id(layer), "last_states"][0]
        if weights := found.get((id(layer), "cross_attentions")):
            results["cross_attentions"] = weights
        return results
    size = len(layer.blocks) + 1
    results = {
        f"{prefix}hidden_states": hidden_states[turn * size : (turn + 1) * size],
        f"{prefix}attentions": [found[id(block.attention), "attentions"][turn] for block in layer.blocks],
    }
    cross = [block.cross_attention for block in layer.blocks if block.cross_attention]
    if cross and prefix == "decoder_":
        results["cross_attentions"] = [found[id(attention), "attentions"][0] for attention in cross]
    return results
