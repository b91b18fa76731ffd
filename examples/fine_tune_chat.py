"""Teach SmolLM2 to write the line of a Debian package from its description, as a chat, with LoRA or all weights.

python examples/fine_tune_chat.py                 # LoRA
python examples/fine_tune_chat.py --method full
"""

import argparse
import re

import keras
import numpy as np

import kerasllm
from kerasllm.training import AdamW, ChatDataset, LanguageModelDataset, Perplexity, TokenCrossentropy, WarmupCosine

NUM_CHATS, NUM_HELD_OUT, NUM_ANSWERS = 800, 200, 60  # to learn from, to measure by, to write
MAX_LENGTH = 256  # tokens of a row
BATCH_SIZE = 4  # rows
RANK, ALPHA = 16, 32
LEARNING_RATE = {"lora": 1e-3, "full": 1e-4}
PROMPT = "Summarize the description of this software in one short line.\n\n{}"
WIKI_TOKENS = 20000  # of WikiText-2, to see what else the model still knows


def main(tiny=False, method="lora"):
    """Train and measure the model; with `tiny` a toy of it, for the tests.

    Returns:
        The model, its training data, and figures: (name, value after, {"before": value before}).
    """
    keras.utils.set_random_seed(0)
    train, held_out = read_chats(tiny)
    model = kerasllm.GPT.from_preset(kerasllm.pretrained.smollm2(), dropout=0.0)
    options = {"batch_size": BATCH_SIZE, "max_length": MAX_LENGTH, "too_long": "drop"}
    data = ChatDataset(train, model.tokenizer, packing="best_fit", **options)
    others = ChatDataset(held_out, model.tokenizer, shuffle=False, **options)
    wiki = " ".join(kerasllm.datasets.wikitext2().test)[: 500 if tiny else 5 * WIKI_TOKENS]
    wiki = LanguageModelDataset([wiki], model.tokenizer, BATCH_SIZE, MAX_LENGTH, shuffle=False)

    loss = {"loss": TokenCrossentropy(chunk_size=256), "metrics": [Perplexity()]}
    model.compile("sgd", **loss)
    before = measure(model, others, wiki, held_out, tiny)
    if method == "lora":
        kerasllm.add_lora(model, RANK, ALPHA)
    rate = WarmupCosine(LEARNING_RATE[method], max(len(data) // 10, 1), len(data))
    model.compile(AdamW(rate, global_clipnorm=1.0), **loss)
    print(f"{sum(int(np.prod(v.shape)) for v in model.trainable_variables) / 1e6:.1f} million weights are trained")
    model.fit(data, epochs=1, verbose=2)
    if method == "lora":
        kerasllm.save_adapter(model, "adapters/synopses")
        kerasllm.merge_lora(model)
        model.compile("sgd", **loss)
    after = measure(model, others, wiki, held_out, tiny)
    for name in after:
        print(f"    {name:<22} {before[name]:.3f} before, {after[name]:.3f} after")
    return model, data, [(name, after[name], {"before": before[name]}) for name in after]


def read_chats(tiny):
    """Chats to learn from, and others. Packages of one source, "foo - headers" and "foo - tools", are one here."""
    descriptions = kerasllm.datasets.debian_descriptions()
    families = {}
    for description, line in descriptions.test + descriptions.validation + descriptions.train:
        families.setdefault(re.split(r" - | \(|: |, ", line.lower())[0], (description, line))
    chats = [
        [{"role": "user", "content": PROMPT.format(description)}, {"role": "assistant", "content": line}]
        for description, line in families.values()
    ]
    num_held_out = len(chats) // 2 if tiny else NUM_HELD_OUT
    return chats[num_held_out:][:NUM_CHATS], chats[:num_held_out]


def measure(model, held_out, wiki, chats, tiny):
    """The loss of answers that were not learnt, the perplexity of other text, and how near written answers come."""
    some = chats[: 2 if tiny else NUM_ANSWERS]
    prompts = [model.tokenizer.encode_chat(chat[:1]) for chat in some]
    rows = model.generate(prompts, max_new_tokens=4 if tiny else 24, temperature=0, batch_size=20, strip_prompt=True)
    answers = [model.tokenizer.decode(row).strip() for row in rows]
    references = [chat[1]["content"] for chat in some]
    print(f"\n    {references[0]}\n    {answers[0]}")
    return {
        "loss of answers": model.evaluate(held_out, verbose=0)[0],
        "WikiText-2 perplexity": model.evaluate(wiki, verbose=0)[1],
        "ROUGE-L": kerasllm.metrics.rouge(answers, references)["rougeL"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fine-tune a chat model.")
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    main(method=parser.parse_args().method)
