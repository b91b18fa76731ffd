"""Teach MiniLM to answer questions from a text, by names missing from sentences of Wikipedia.

A sentence with a name left out is the question, the rest of its paragraph the context, the name the answer: span
selection (Glass et al. 2020, arXiv:1909.04120). Models trained on real questions open the same way:
kerasllm.BERTQuestionAnswerer.from_preset("hf://deepset/tinyroberta-squad2").answer(question, context)

python examples/answer_questions.py
"""

import random

import keras
from tag_entities import names

import kerasllm
from kerasllm.training import AdamW, QuestionAnsweringDataset, WarmupCosine

QUESTIONS, TEST_QUESTIONS = 4000, 300
MAX_LENGTH = 192
BATCH_SIZE = 16
LEARNING_RATE = 2e-4


def main(tiny=False):
    """Train, use and measure the model; with `tiny` a toy of it, for the tests.

    Returns:
        The model, its validation data, and figures: (name, value, {baseline: its value}).
    """
    train, _, test = (questions(part) for part in kerasllm.datasets.wikitext2("paragraph"))
    train, test = train[:QUESTIONS], test[:TEST_QUESTIONS]

    # The encoder is MiniLM's; what marks the answer's start and end is new.
    model = kerasllm.BERTQuestionAnswerer.from_preset(kerasllm.pretrained.minilm(), fresh_head=True)
    options = {"batch_size": BATCH_SIZE, "max_length": MAX_LENGTH, "too_long": "drop"}
    train_data = QuestionAnsweringDataset(*zip(*train, strict=True), model.tokenizer, **options)
    test_data = QuestionAnsweringDataset(*zip(*test, strict=True), model.tokenizer, shuffle=False, **options)
    steps = len(train_data)
    model.compile(
        AdamW(WarmupCosine(LEARNING_RATE, steps // 10, steps), weight_decay=0.01, global_clipnorm=1.0),
        loss=dict.fromkeys(("start_logits", "end_logits"), keras.losses.SparseCategoricalCrossentropy(True)),
    )
    model.fit(train_data, validation_data=test_data, epochs=1)

    # Use: paragraphs that nobody has seen.
    asked, contexts, places = map(list, zip(*test, strict=True))
    answers = [answer["answer"] for answer in model.answer(asked, contexts)]
    references = [context[start:end] for context, (start, end) in zip(contexts, places, strict=True)]
    for question, answer, reference in list(zip(asked, answers, references, strict=True))[:5]:
        print(f"{question}\n    model      {answer}\n    reference  {reference}")
    scores = kerasllm.metrics.answer_scores(answers, references)
    chance = random.Random(0)
    guesses = [chance.choice(found_names(context) or [""]) for context in contexts]
    guessed = kerasllm.metrics.answer_scores(guesses, references)
    print(
        f"Exact match on {len(test)} held-out questions: {scores['exact_match']:.3f}, F1 {scores['f1']:.3f}; ", end=""
    )
    print(f"a name of the context by chance: {guessed['exact_match']:.3f}, {guessed['f1']:.3f}")
    trivial = {"a name of the context": guessed["exact_match"]}
    return model, test_data, [("exact match", scores["exact_match"], trivial)]


def questions(paragraphs):
    """One `(question, context, (start, end))` of each paragraph that says a name in two sentences."""
    chance, found = random.Random(0), []
    for paragraph in paragraphs:
        sentences = paragraph.split(" . ")
        asked = chance.randrange(len(sentences))
        context = " . ".join(sentences[:asked] + sentences[asked + 1 :])
        for name in found_names(sentences[asked]):
            start = f" {context} ".find(f" {name} ")
            if start >= 0:
                question = f" {sentences[asked]} ".replace(f" {name} ", " what ").strip()
                found.append((question, context, (start, start + len(name))))
                break
    return found


def found_names(text):
    """The names in a text, words that stand together as one."""
    runs, last = [], False
    words = text.split()
    for word, mark in zip(words, names(words), strict=True):
        if mark:
            runs[-1:] = [f"{runs[-1]} {word}"] if last else [*runs[-1:], word]
        last = mark
    return runs


if __name__ == "__main__":
    main()
