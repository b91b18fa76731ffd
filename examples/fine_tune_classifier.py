"""Teach MiniLM to tell good reviews of films from bad ones.

python examples/fine_tune_classifier.py
"""

import keras
import numpy as np

import kerasllm
from kerasllm.training import AdamW, ClassificationDataset, WarmupCosine

LABELS = ["negative", "positive"]
MAX_LENGTH = 64
BATCH_SIZE = 32
EPOCHS = 2
LEARNING_RATE = 1e-4


def main(tiny=False):
    """Train, use and measure the model; with `tiny` a toy of it, for the tests.

    Returns:
        The model, its validation data, and figures: (name, value, {baseline: its value}).
    """
    # Data: single sentences about films, 5 of 6 for training.
    train, validation, test = kerasllm.datasets.movie_reviews("rotten_tomatoes")

    # The encoder is MiniLM's; the classifier on top of it is new.
    model = kerasllm.BERTClassifier.from_preset(kerasllm.pretrained.minilm(), fresh_head=True, labels=LABELS)
    options = {"batch_size": BATCH_SIZE, "max_length": MAX_LENGTH, "too_long": "truncate"}
    train_data = ClassificationDataset(*zip(*train, strict=True), model.tokenizer, **options)
    validation_data = ClassificationDataset(*zip(*validation, strict=True), model.tokenizer, shuffle=False, **options)

    total_steps = EPOCHS * len(train_data)
    model.compile(
        AdamW(WarmupCosine(LEARNING_RATE, total_steps // 10, total_steps), weight_decay=0.01, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(train_data, validation_data=validation_data, epochs=1 if tiny else EPOCHS)

    # Use: sentences that nobody has seen.
    texts, labels = map(list, zip(*test, strict=True))
    answers = model.classify(texts, truncate=True)
    predictions = [LABELS.index(answer[0]["label"]) for answer in answers]
    for text, answer in list(zip(texts, answers, strict=True))[:5]:
        print(f"{answer[0]['label']} ({answer[0]['score']:.2f})  {text:.80}")

    scores = kerasllm.metrics.classification_scores(labels, predictions, len(LABELS))
    print(f"\nAccuracy on {len(texts)} held-out sentences: {scores['accuracy']:.3f}\n")
    print("             precision  recall    F1")
    for i, label in enumerate(LABELS):
        print(f"{label:<12} {scores['precision'][i]:>9.3f} {scores['recall'][i]:>7.3f} {scores['f1'][i]:>5.3f}")
    print("\nRows: what a sentence is, columns: what it was taken for, in the order above")
    print(kerasllm.metrics.confusion_matrix(labels, predictions, len(LABELS)))
    majority = max(np.mean(np.array(labels) == i) for i in range(len(LABELS)))
    return model, validation_data, [("accuracy", scores["accuracy"], {"always the same label": float(majority)})]


if __name__ == "__main__":
    main()
