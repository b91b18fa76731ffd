"""Make the files beside this one: what kerasllm 0.1.0 wrote at commit a372925, with keras 3.15.1 on jax in float32.

Kept for the record, to be run at that commit only: later code must open these files, not write them anew.

    NAME.keras       what `save` wrote, its zip compressed
    NAME/            what `save_to_preset` wrote of the same model
    answers.npz      NAME/inputs/INPUT; NAME/outputs/I; NAME/ids, greedy ids of `generate`, -1 after the end of a row;
                     NAME/labels and NAME/trained/I, the outputs after one step more than the file's
    configs.json     NAME -> `variables`, for each its path, its shape and whether it is trained; where there is no
                     file, `object`, what `serialize_keras_object` gave, and `shapes`, with which a layer was built
    signatures.json  class -> for each argument, in its place, [name] or [name, default]
"""

import inspect
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"

import keras  # noqa: E402
import numpy as np  # noqa: E402

import kerasllm  # noqa: E402
from kerasllm import layers  # noqa: E402
from kerasllm.layers.transformer import TransformerStack  # noqa: E402
from kerasllm.training import TokenCrossentropy  # noqa: E402

HERE = Path(__file__).parent
V = 30
SIZES = {"num_layers": 2, "num_heads": 4, "hidden_dim": 16, "intermediate_dim": 24}
SHORT = {**SIZES, "max_sequence_length": 24}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
LLAMA = {
    "max_sequence_length": 20,
    "dropout": 0.0,
    "activation": "silu",
    "norm": "rms",
    "norm_epsilon": 1e-3,
    "positions": "rotary",
    "gated": True,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "use_bias": False,
    "use_qkv_bias": True,
    "query_key_norm": True,
    "sliding_window": 3,
    "rope_base": 50.0,
    "rope_scaling": LLAMA3,
    "initializer_range": 0.3,
}
T5 = {
    "max_sequence_length": None,
    "dropout": 0.0,
    "activation": "gelu_tanh",
    "norm_first": True,
    "positions": "relative",
    "scale_embeddings": False,
    "share_embeddings": True,
    "head_dim": 6,
    "attention_scale": 1.0,
    "gated": True,
    "norm": "rms",
    "norm_epsilon": 1e-6,
    "use_bias": False,
    "scale_head": True,
    "num_buckets": 6,
    "max_distance": 9,
    "initializer_range": 0.3,
}
BART = {
    **SHORT,
    "positions": "learned",
    "activation": "gelu",
    "share_embeddings": True,
    "norm_embeddings": True,
    "num_decoder_layers": 1,
    "num_decoder_heads": 2,
    "decoder_intermediate_dim": 20,
    "use_head_bias": True,
}
EMBEDDER = {
    "pooling": ["cls", "weightedmean"],
    "normalize": False,
    "truncate_at": 20,
    "include_prompt": False,
    "dense": [{"units": 6, "activation": "tanh", "use_bias": True}],
    "prompts": {"query": "a: "},
    "default_prompt_name": "query",
    "similarity": "dot",
}
TOKENIZER = kerasllm.Tokenizer.train_words(["a cat sat on the mat"], V, pad="<pad>", unk="<unk>", bos="<s>", eos="</s>")
LETTERS = kerasllm.Tokenizer.train_wordpiece(["a cat sat on the mat"], V, min_frequency=1)

MODELS = {  # name -> (model, presets too)
    "gpt": (lambda: kerasllm.GPT(V, 2, 4, 16, max_sequence_length=24, tokenizer=TOKENIZER), True),
    "gpt_llama": (lambda: kerasllm.GPT(V, **SIZES, **LLAMA, tie_embeddings=False), True),
    "gpt_alibi": (lambda: kerasllm.GPT(V, **SHORT, positions="alibi"), False),
    "gpt_relative": (lambda: kerasllm.GPT(V, **SHORT, positions="relative", tie_embeddings=False), True),
    "gpt_parts": (lambda: with_parts(kerasllm.GPT(V, **SHORT, norm="rms")), False),
    "bert": (lambda: kerasllm.BERT(V, **SHORT, embedding_dim=12), False),
    "bert_classifier": (
        lambda: kerasllm.BERTClassifier(
            V,
            **SHORT,
            num_segments=0,
            labels=["bad", "good", "so so"],
            problem_type="multi_label",
            pooler_activation="relu",
            family="distilbert",
            tokenizer=LETTERS,
        ),
        True,
    ),
    "bert_token_classifier": (lambda: kerasllm.BERTTokenClassifier(V, **SHORT, labels=3), False),
    "bert_question_answerer": (lambda: kerasllm.BERTQuestionAnswerer(V, **SHORT, num_segments=1), False),
    "bert_masked_lm": (lambda: kerasllm.BERTMaskedLM(V, **SHORT), False),
    "bert_embedder": (lambda: kerasllm.BERTEmbedder(V, **SHORT, **EMBEDDER, tokenizer=LETTERS), False),
    "summarizer": (lambda: kerasllm.Summarizer(V, **SHORT, tokenizer=LETTERS), False),
    "summarizer_shared": (lambda: kerasllm.Summarizer(V, **SHORT, share=True), True),
    "translator": (lambda: kerasllm.TransformerTranslator(V, V + 1, **SIZES), True),
    "translator_t5": (lambda: kerasllm.TransformerTranslator(V, V, **SIZES, **T5), True),
    "translator_bart": (lambda: kerasllm.TransformerTranslator(V, V, **BART), False),
    "lstm_translator": (lambda: kerasllm.LSTMTranslator(V, V + 1, num_layers=2, hidden_dim=16), True),
    "rnn": (lambda: kerasllm.RNNLanguageModel(V, hidden_dim=16, cell="gru", num_attention_heads=2), False),
    "user_stacks": (lambda: user_stacks(), False),
    "user_blocks": (lambda: user_blocks(), False),
}
TRAINED = ("translator_t5",)

STACK = {**SHORT, "dropout": 0.1}
STACKS = {
    "default": {},
    "post_norm": {"norm_first": False, "norm_embeddings": True, "num_segments": 2, "embedding_dim": 12},
    "post_norm_rms": {"norm_first": False, "norm": "rms", "positions": "split_sinusoidal", "scale_embeddings": True},
    "relative": {"positions": "relative", "num_buckets": 8, "max_distance": 20, "attention_scale": 1.0, "norm": "rms"},
    "rotary": {"positions": "rotary", "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "gated": True},
    "alibi": {"positions": "alibi", "max_sequence_length": None, "use_bias": False, "dtype": "mixed_bfloat16"},
    "grouped": {"num_key_value_heads": 2, "head_dim": 6, "query_key_norm": True, "use_qkv_bias": False},
}


def sublayers():
    return layers.MultiHeadAttention(2), layers.FeedForward(24)


LAYERS = {  # name -> (layer, shapes to build with)
    **{f"encoder_{k}": (layers.TransformerEncoder(V, **{**STACK, **a}), [[2, 7]]) for k, a in STACKS.items()},
    **{
        f"decoder_{k}": (layers.TransformerDecoder(V, **{**STACK, **a}, cross_attention="post" in k), [[2, 7]])
        for k, a in STACKS.items()
    },
    "decoder_llama": (layers.TransformerDecoder(V, **SIZES, **LLAMA), [[2, 7]]),
    "block_pre_norm": (layers.TransformerBlock(*sublayers(), norm_first=True), [[2, 7, 16]]),
    "block_post_norm": (layers.TransformerBlock(*sublayers(), norm_first=False), [[2, 7, 16]]),
    "block_cross": (
        layers.TransformerBlock(
            layers.MultiHeadAttention(4, num_key_value_heads=2, query_key_norm=True),
            layers.SwiGLU(24, use_bias=False),
            layers.MultiHeadAttention(2, head_dim=3, scale=0.5),
            norm="rms",
            norm_first=False,
            dropout=0.1,
        ),
        [[2, 7, 16], [2, 5, 12]],
    ),
    "attention": (layers.MultiHeadAttention(4, 6, 2, use_bias=False, use_qkv_bias=True), [[2, 7, 16]]),
    "rotary_linear": (layers.RotaryPositions(50.0, {"rope_type": "linear", "factor": 2.0}), [[2, 4, 7, 6]]),
    "rotary_llama3": (layers.RotaryPositions(scaling=LLAMA3), [[2, 4, 7, 6]]),
}
MORE_MODELS = {  # of which only the config is kept
    "gpt_sinusoidal": lambda: kerasllm.GPT(V, **SHORT, positions="sinusoidal", dtype="bfloat16"),
    "gpt_no_positions": lambda: kerasllm.GPT(V, **SHORT, positions=None, use_bias=False),
    "bert_no_pooler": lambda: kerasllm.BERT(V, **SHORT, pooler=False, num_segments=0, family="distilbert"),
    "translator_marian": lambda: kerasllm.TransformerTranslator(
        V, V, **SHORT, positions="split_sinusoidal", share_embeddings=True, use_head_bias=True, activation="silu"
    ),
    "translator_rotary": lambda: kerasllm.TransformerTranslator(
        V, V + 1, **SHORT, positions="rotary", norm_first=True, tie_embeddings=False, use_head_bias=True
    ),
    "gru_translator": lambda: kerasllm.LSTMTranslator(
        V, V + 1, hidden_dim=8, embedding_dim=6, cell="gru", attention="general", tie_embeddings=True
    ),
}


def main():
    keras.utils.set_random_seed(0)
    for path in HERE.iterdir():
        if path.suffix != ".py":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    answers, configs = {}, {}
    for name, (make, as_preset) in MODELS.items():
        model = make()
        randomise(model)
        configs[name] = {"variables": variables(model)}
        if name in TRAINED:
            train(name, model, answers)
        save(model, HERE / f"{name}.keras")
        if as_preset:
            model.save_to_preset(HERE / name)
        answer(name, model, answers)
    for name, make in MORE_MODELS.items():
        model = make()
        configs[name] = {"variables": variables(model), "object": keras.saving.serialize_keras_object(model)}
    for name, (layer, shapes) in LAYERS.items():
        written = keras.saving.serialize_keras_object(layer)  # before `build`, as a user may
        layer.build(*shapes)
        configs[name] = {"variables": variables(layer), "object": written, "shapes": shapes}
    np.savez_compressed(HERE / "answers.npz", **answers)
    write_json("configs.json", configs)
    write_json("signatures.json", signatures())


def randomise(model):
    """Weights large enough for greedy choices to be clear, of few bits, so that files are small."""
    random = np.random.default_rng(0)
    for v in model.variables:
        if "float" in str(v.dtype) and v.name != "kernel_scale":
            v.assign(np.round(random.normal(scale=0.5, size=v.shape) * 16) / 16)


def with_parts(model):
    """A model with parts that are frozen, adapted, quantised."""
    block = model.decoder.blocks[0]
    model.decoder.embeddings.trainable = False
    block.feed_forward.trainable = False
    block.attention.query.enable_lora(2, lora_alpha=3)
    weights_only = keras.quantizers.Int8QuantizationConfig(activation_quantizer=None)
    block.attention.output_projection.quantize("int8", weights_only)
    return model


def user_stacks():
    """A user's encoder and decoder, one post-norm, the other pre-norm, with one table of embeddings."""
    source = keras.Input((None,), dtype="int32", name="source")
    target = keras.Input((None,), dtype="int32", name="target")
    encoder = layers.TransformerEncoder(V, **SHORT, norm_first=False, positions="rotary")
    memory = encoder(source)
    decoder = layers.TransformerDecoder(
        V, **SHORT, cross_attention=True, norm="rms", token_embedding=encoder.embeddings.token
    )
    return keras.Model({"source": source, "target": target}, decoder.logits(decoder(target, memory=memory)))


def user_blocks():
    """A user's blocks, attention and rotations."""
    x = keras.Input((None, 16), name="x")
    memory = keras.Input((None, 12), name="memory")
    heads = keras.Input((4, None, 6), name="heads")
    y = layers.TransformerBlock(layers.MultiHeadAttention(2), layers.FeedForward(24))(x, use_causal_mask=True)
    y = layers.TransformerBlock(layers.MultiHeadAttention(4), layers.SwiGLU(24), norm="rms", norm_first=False)(y)
    y = layers.TransformerBlock(
        layers.MultiHeadAttention(4, num_key_value_heads=2, query_key_norm=True),
        layers.GEGLU(24, use_bias=False),
        layers.MultiHeadAttention(2, head_dim=3, scale=0.5),
        norm_first=False,
    )(y, memory=memory)
    y = layers.MultiHeadAttention(4, 6, 2, use_bias=False, use_qkv_bias=True)(y, memory)
    turned = layers.RotaryPositions(scaling={"rope_type": "linear", "factor": 2.0})(heads)
    turned = layers.RotaryPositions(50.0, LLAMA3)(turned)
    return keras.Model({"x": x, "memory": memory, "heads": heads}, [y, turned])


def inputs_of(model):
    """An array for each input: floats, masks that pad on the right, positions, ids."""
    random = np.random.default_rng(1)
    inputs = {}
    for name, symbol in model.input.items():
        shape = [2, *(7 if size is None else size for size in symbol.shape[1:])]
        if "float" in symbol.dtype:
            inputs[name] = random.normal(size=shape).astype("float32")
        elif name.endswith("mask"):
            inputs[name] = (np.arange(7) < [[7], [4 if name.startswith("source") else 5]]).astype(symbol.dtype)
        else:
            limit = {"segment_ids": 2, "masked_positions": 5}.get(name, V)
            inputs[name] = random.integers(0 if limit < V else 1, limit, shape).astype("int32")
    return inputs


def train(name, model, answers):
    """Compile and train one step; note what a second step does, which needs the optimizer's state."""
    inputs = inputs_of(model)
    labels = np.random.default_rng(2).integers(0, V, (2, 7)).astype("int32")
    # An epsilon that hides the noise of gradients that are 0.
    optimizer = keras.optimizers.Adam(0.05, epsilon=0.3)
    model.compile(optimizer, loss=TokenCrossentropy(), run_eagerly=True)
    model.train_on_batch(inputs, labels)
    for v in [*model.variables, *optimizer.variables]:
        if "float" in str(v.dtype):
            v.assign(keras.ops.cast(keras.ops.cast(v, "bfloat16"), v.dtype))  # half of the bits are 0 in the file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        copy = keras.saving.load_model(path)
    copy.train_on_batch(inputs, labels)
    answers[f"{name}/labels"] = labels
    answers |= {f"{name}/trained/{i}": y for i, y in enumerate(outputs_of(copy, inputs))}


def answer(name, model, answers):
    """Note inputs, outputs and greedy ids."""
    inputs = inputs_of(model)
    answers |= {f"{name}/inputs/{key}": x for key, x in inputs.items()}
    answers |= {f"{name}/outputs/{i}": y for i, y in enumerate(outputs_of(model, inputs))}
    if hasattr(model, "generate"):
        prompts = [[3, 1, 4, 1], [5, 9]]
        starts = {} if "token_ids" in inputs else {"prompts": [[2], [2]]}
        rows = model.generate(prompts, **starts, max_new_tokens=6, num_beams=1, no_repeat_ngram_size=1)
        ids = np.full((2, 10), -1, "int32")
        for place, row in zip(ids, rows, strict=True):
            place[: len(row)] = row
        answers[f"{name}/ids"] = ids


def outputs_of(model, inputs):
    return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(model(inputs, training=False))]


def save(model, path):
    """Write a `.keras` file, compressed, which Keras leaves out."""
    model.save(path)
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, data in members.items():
            file.writestr(name, data)


def variables(thing):
    return [[v.path, list(v.shape), v.trainable] for v in thing.weights]


def signatures():
    found = {**public(kerasllm), **public(layers), "TransformerStack": TransformerStack}
    return {name: arguments(cls) for name, cls in sorted(found.items())}


def public(package):
    values = {name: getattr(package, name) for name in package.__all__}
    return {name: cls for name, cls in values.items() if isinstance(cls, type) and issubclass(cls, keras.Layer)}


def arguments(cls):
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    named = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return [[p.name] if p.default is p.empty else [p.name, p.default] for p in named]


def write_json(name, content):
    """One line for each name."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    (HERE / name).write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
