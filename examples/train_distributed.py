"""Train a GPT on as many devices as there are; the same script runs on one.

python examples/train_distributed.py                                  # JAX, TensorFlow: all devices of this machine
python examples/train_distributed.py --data 2 --model 4               # JAX: 2 x 4 devices, weights split over 4
python examples/train_distributed.py --shard-weights                  # JAX: weights and Adam's state split over all
torchrun --nproc-per-node 2 examples/train_distributed.py             # PyTorch: a process for each GPU

JAX on several machines: see "Several devices" in README.md. Without accelerators,
XLA_FLAGS=--xla_force_host_platform_device_count=8 makes eight devices of a CPU.
"""

import argparse

import keras

import kerasllm
from kerasllm.training import (
    AdamW,
    LanguageModelDataset,
    Perplexity,
    ResumableTraining,
    TokenCrossentropy,
    WarmupCosine,
)

VOCABULARY_SIZE = 8192
BATCH_SIZE, LENGTH = 64, 128  # rows of all devices together, tokens of each
EPOCHS = 3


def main(tiny=False, data=-1, model=1, shard_weights=False, folder="runs/distributed"):
    """Train, measure and save; with `tiny` a toy, for the tests.

    Returns:
        The model, its training data, and figures: (name, value, {}).
    """
    keras.utils.set_random_seed(0)  # of all processes: what they begin with must be the same
    kerasllm.distribute({"data": data, "model": model}, shard_weights)

    texts = kerasllm.datasets.wikitext2()
    train, validation = (texts.train[:40], texts.validation[:10]) if tiny else (texts.train, texts.validation)
    tokenizer = kerasllm.Tokenizer.train_bpe(train, 300 if tiny else VOCABULARY_SIZE, eos="<eos>")
    batch = (16, 32) if tiny else (BATCH_SIZE, LENGTH)
    train_data = LanguageModelDataset(train, tokenizer, *batch)
    validation_data = LanguageModelDataset(validation, tokenizer, *batch, shuffle=False)

    sizes = (1, 4, 32) if tiny else (4, 8, 256)
    gpt = kerasllm.GPT(tokenizer.vocabulary_size, *sizes, max_sequence_length=batch[1], tokenizer=tokenizer)
    epochs = 1 if tiny else EPOCHS
    rate = WarmupCosine(1e-3, 100, epochs * len(train_data))
    gpt.compile(AdamW(rate, global_clipnorm=1.0), TokenCrossentropy(chunk_size=256), metrics=[Perplexity()])
    run = ResumableTraining(folder + "/run")  # killed, the same command goes on
    gpt.fit(train_data, validation_data=validation_data, epochs=epochs, verbose=2, callbacks=[run])

    on_device = kerasllm.sharding_summary(gpt)
    perplexity = gpt.evaluate(validation_data, verbose=0, return_dict=True)["perplexity"]
    gpt.save_to_preset(folder + "/model")  # by one process; it opens on one device too
    print(gpt.generate("The", max_new_tokens=20, temperature=0.8, seed=1))
    print(f"perplexity {perplexity:.2f}, at most {max(on_device.values()) / 1e6:.1f} MB on a device")
    return gpt, train_data, [("perplexity", perplexity, {})]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a GPT on several devices.")
    parser.add_argument(
        "--data", type=int, default=-1, help="devices along the rows of a batch, -1 for all that are left"
    )
    parser.add_argument("--model", type=int, default=1, help="devices that the weights are split over (JAX)")
    parser.add_argument("--shard-weights", action="store_true", help="split weights over the rows' devices too (JAX)")
    main(**vars(parser.parse_args()))
