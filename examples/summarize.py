"""Teach a summariser to say in a line what a Debian package is for, from its description.

Both sides begin with the weights of MiniLM (BERT2BERT: Rothe et al. 2020, arXiv:1907.12461); beside it one of the same
size that begins with nothing, after the same steps.

python examples/summarize.py
"""

import kerasllm
from kerasllm.training import AdamW, TokenCrossentropy, TranslationDataset, WarmupLinear

PAIRS, TEST_PAIRS = 12000, 200
MAX_LENGTH = 96  # tokens of a description
BATCH_SIZE = 32
LEARNING_RATE = 5e-4


def main(tiny=False):
    """Train, use and measure both models; with `tiny` toys of them, for the tests.

    Returns:
        The warm-started model, its validation data, and figures: (name, value, {baseline: its value}).
    """
    train, _, test = kerasllm.datasets.debian_descriptions()
    train, test = train[:PAIRS], test[:TEST_PAIRS]

    warm = kerasllm.Summarizer.from_bert(kerasllm.pretrained.minilm(), share=True)
    cold = kerasllm.Summarizer(**warm.arguments, tokenizer=warm.tokenizer)
    rouge = {}
    for name, model in (("warm", warm), ("cold", cold)):
        options = {"batch_size": BATCH_SIZE, "max_length": MAX_LENGTH, "too_long": "drop"}
        train_data = TranslationDataset(train, model.tokenizer, model.tokenizer, **options)
        test_data = TranslationDataset(test, model.tokenizer, model.tokenizer, shuffle=False, **options)
        steps = len(train_data)
        model.compile(
            AdamW(WarmupLinear(LEARNING_RATE, steps // 10, steps), weight_decay=0.01, global_clipnorm=1.0),
            loss=TokenCrossentropy(label_smoothing=0.1),
        )
        model.fit(train_data, validation_data=test_data, epochs=1)

        # Use: descriptions that nobody has seen, by 4 beams that repeat no three words.
        fitting = [pair for pair in test if len(model.tokenizer.encode(pair[0])) <= MAX_LENGTH]
        texts, references = map(list, zip(*fitting, strict=True))
        summaries = model.summarize(texts, max_new_tokens=24, **({"num_beams": 1} if tiny else {}))
        rouge[name] = kerasllm.metrics.rouge(summaries, references)
        for text, summary, reference in list(zip(texts, summaries, references, strict=True))[:5]:
            print(f"{text:.100}...\n    {name}       {summary}\n    reference  {reference}")

    lead = [" ".join(text.split()[:8]) for text in texts]
    rouge["first eight words"] = kerasllm.metrics.rouge(lead, references)
    print(f"\nROUGE F-measures with Porter's stemmer, on {len(texts)} held-out descriptions")
    for name, scores in rouge.items():
        print(f"{name:<18}", *(f"{measure} {value:.3f} " for measure, value in scores.items()))
    value, trivial = rouge.pop("warm")["rougeL"], {name: scores["rougeL"] for name, scores in rouge.items()}
    return warm, test_data, [("ROUGE-L", value, trivial)]


if __name__ == "__main__":
    main()
