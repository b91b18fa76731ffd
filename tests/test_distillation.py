"""The loss of a student: its value and gradient, what counts, plain `fit`, and teachers that change."""

import keras
import numpy as np
import pytest
from keras import ops

import kerasllm
from kerasllm.training import ClassificationDataset, DistillationLoss, ResumableTraining, TokenCrossentropy

SIZES = {"num_heads": 2, "hidden_dim": 8, "max_sequence_length": 8, "dropout": 0.0, "initializer_range": 0.5}
TEXTS = ["the cat sat", "a dog", "the dog sat on a mat", "cats"]
RNG = np.random.default_rng(0)
IDS = RNG.integers(1, 12, (4, 6)).astype("int32")
MASK = np.arange(6) < np.array([6, 3, 4, 1])[:, None]
LABELS = np.where(MASK, np.roll(IDS, -1, 1), -1)
X = {"token_ids": IDS, "padding_mask": MASK}


def gpt(num_layers, seed):
    keras.utils.set_random_seed(seed)
    return kerasllm.GPT(12, num_layers=num_layers, **SIZES)


def reference(labels, student, teacher, temperature, alpha):
    """Hinton's loss of the tokens that count, in numpy and float64."""

    def log_softmax(z):
        z = z.astype("float64") - z.max(-1, keepdims=True)
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    p, q = log_softmax(teacher / temperature), log_softmax(student / temperature)
    soft = temperature**2 * (np.exp(p) * (p - q)).sum(-1)
    hard = -np.take_along_axis(log_softmax(student), np.maximum(labels, 0)[..., None], -1)[..., 0]
    return ((alpha * soft + (1 - alpha) * hard) * (labels >= 0)).sum() / (labels >= 0).sum()


def test_the_loss_is_that_of_the_paper_over_the_tokens_that_count():
    teacher, student = gpt(2, 1), gpt(1, 2)
    logits = [ops.convert_to_numpy(model(X)) for model in (student, teacher)]
    expected = reference(LABELS, *logits, 2.0, 0.7)
    # Keras's own is the same where every token counts.
    kl = keras.distillation.LogitsDistillation(2.0, loss=keras.losses.KLDivergence())
    full = reference(IDS, *logits, 2.0, 1.0)
    assert full == pytest.approx(float(kl.compute_loss(*map(ops.convert_to_tensor, logits[::-1]))), rel=1e-4)
    student.compile(keras.optimizers.SGD(0.0), DistillationLoss(teacher, 2.0, 0.7))
    # Batches count 6, 3, 4 and 1 tokens: what is shown is the mean over all of them.
    assert student.fit(X, LABELS, batch_size=1, verbose=0).history["loss"][0] == pytest.approx(expected, rel=1e-4)
    assert student.evaluate(X, LABELS, batch_size=4, verbose=0) == pytest.approx(expected, rel=1e-4)
    weight = np.array([1.0, 0.0, 2.0, 0.0], "float32")
    weighed = sum(
        w * reference(LABELS[i : i + 1], *(z[i : i + 1] for z in logits), 2.0, 0.7) * MASK[i].sum()
        for i, w in enumerate(weight)
    )
    shown = student.evaluate(X, LABELS, sample_weight=weight, batch_size=4, verbose=0)
    assert shown == pytest.approx(weighed / MASK.sum(), rel=1e-4)


def test_a_student_learns_what_its_teacher_says_and_no_other_weight_moves():
    teacher, student = gpt(2, 1), gpt(1, 2)
    before = teacher.get_weights()
    student.compile(keras.optimizers.Adam(0.1), DistillationLoss(teacher, 2.0, 1.0))
    losses = student.fit(X, LABELS, batch_size=4, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    assert all(np.array_equal(a, b) for a, b in zip(before, teacher.get_weights(), strict=True))
    assert len(student.trainable_variables) == len(gpt(1, 2).trainable_variables)
    # A teacher with other weights is heard in the next call.
    first = student.evaluate(X, LABELS, verbose=0)
    teacher.set_weights([-w for w in before])
    expected = reference(LABELS, ops.convert_to_numpy(student(X)), ops.convert_to_numpy(teacher(X)), 2.0, 1.0)
    assert student.evaluate(X, LABELS, verbose=0) == pytest.approx(expected, rel=1e-3)
    assert expected != pytest.approx(first, rel=0.1)
    student.optimizer.learning_rate = 0.0
    assert student.fit(X, LABELS, verbose=0).history["loss"][0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.once("torch")
def test_classifiers_of_other_inputs_and_files_without_the_teacher(tmp_path):
    tokenizer = kerasllm.Tokenizer.train_wordpiece(TEXTS, 60)
    sizes = {**SIZES, "max_sequence_length": 12, "labels": ["a", "b", "c"], "tokenizer": tokenizer}
    teacher = kerasllm.BERTClassifier(tokenizer.vocabulary_size, num_layers=2, **sizes)
    student = kerasllm.BERTClassifier(tokenizer.vocabulary_size, num_layers=1, num_segments=0, **sizes)
    loss = DistillationLoss(teacher, temperature=4.0, alpha=0.5)
    dataset = ClassificationDataset(TEXTS, [0, 1, 2, 1], tokenizer, batch_size=2, max_length=12)
    with pytest.raises(ValueError, match="segment_ids"):
        student.compile("sgd", loss)
        student.fit(ClassificationDataset(TEXTS, [0, 1, 2, 1], tokenizer, segments=False, max_length=12), verbose=0)
    student = kerasllm.BERTClassifier(tokenizer.vocabulary_size, num_layers=1, **sizes)
    student.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    resumable = ResumableTraining(tmp_path / "run")
    history = student.fit(dataset, verbose=0, callbacks=[resumable]).history
    assert np.isfinite([history["loss"], history["accuracy"]]).all()
    student.save(tmp_path / "student.keras")
    teacher.save(tmp_path / "teacher.keras")
    assert (tmp_path / "student.keras").stat().st_size < 1.2 * (tmp_path / "teacher.keras").stat().st_size
    loaded = keras.saving.load_model(tmp_path / "student.keras")
    assert len(loaded.weights) == len(student.weights) and loaded.loss.alpha == 0.5
    assert loaded.classify("the cat", verbose=False) == student.classify("the cat", verbose=False)
    with pytest.raises(ValueError, match=r"teacher \(None\)"):
        loaded.fit(dataset, verbose=0)


def test_both_outputs_of_an_answerer_are_taught():
    teacher, student = (kerasllm.BERTQuestionAnswerer(12, num_layers=n, **SIZES) for n in (2, 1))
    x = {**X, "segment_ids": np.where(np.arange(6) > 0, 1, 0) * np.ones_like(IDS)}
    y = {"start_logits": np.array([1, 1, 2, 0]), "end_logits": np.array([2, 1, 3, 0])}
    student.compile("sgd", {name: DistillationLoss(teacher, output=name) for name in y})
    outputs = [{n: ops.convert_to_numpy(z) for n, z in model(x).items()} for model in (student, teacher)]
    expected = 0.0
    for name in y:
        expected += reference(y[name], *(out[name] for out in outputs), 2.0, 0.5)
    assert student.evaluate(x, y, batch_size=4, verbose=0)[0] == pytest.approx(expected, rel=1e-3)
    assert np.isfinite(student.fit(x, y, verbose=0).history["loss"]).all()
    with pytest.raises(ValueError, match="output"):
        student.compile("sgd", {name: DistillationLoss(teacher) for name in y})
        student.fit(x, y, verbose=0)


@pytest.mark.once("torch")
def test_what_no_loss_can_be_made_of_is_named():
    teacher, student = gpt(1, 1), kerasllm.GPT(13, num_layers=1, **SIZES)
    for wrong in ({"teacher": "x"}, {"temperature": 0}, {"alpha": 1.5}, {"output": 3}, {"ignore_class": "x"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DistillationLoss(**{"teacher": teacher, **wrong})
    student.compile("sgd", DistillationLoss(teacher))
    with pytest.raises(ValueError, match="teacher .*12.*13"):
        student.fit(X, LABELS, verbose=0)
    with pytest.raises(ValueError, match="kerasllm"):
        DistillationLoss(teacher)(LABELS, np.zeros((4, 6, 12), "float32"))
    assert isinstance(DistillationLoss(teacher), TokenCrossentropy)
