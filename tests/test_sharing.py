"""What threads may do with one model at once, and what they are told where they may not."""

import threading

import keras
import numpy as np
import pytest

from kerasllm import GPT, BERTEmbedder, Tokenizer
from kerasllm.generation.programs import Programs
from kerasllm.generation.sharing import Changes

WORDS = Tokenizer.train_words(["the cat sat on the mat and the dog sat too"], 20)
SIZE = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 16, "tokenizer": WORDS}


def in_a_thread(call):
    """What a call gives, or raises, in another thread."""
    results = []

    def work():
        try:
            results.append(call())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    [result] = results
    if isinstance(result, Exception):
        raise result
    return result


def test_changes_are_one_threads_and_seen_by_all():
    changes = Changes(keras.Model(name="some"))
    with changes.made("fit"):
        assert changes.seen() == 1
        with changes.made("load_weights"):  # by a callback
            pass
        assert changes.what == "fit"
        with pytest.raises(RuntimeError, match="'some'.*: fit changes its weights in another thread"):
            in_a_thread(changes.seen)
        with pytest.raises(RuntimeError, match="fit changes its weights in another thread.* quantize must wait"):
            in_a_thread(lambda: changes.made("quantize").__enter__())
    count = in_a_thread(changes.seen)
    with pytest.raises(KeyboardInterrupt), changes.made("fit"):
        raise KeyboardInterrupt
    assert in_a_thread(changes.seen) == count + 2
    for error in (None, OSError("Array has been deleted")):
        with pytest.raises(RuntimeError, match="fit has changed its weights in the meantime"):
            with changes.none_since(changes.seen()), changes.made("fit"):
                if error:
                    raise error


def test_a_text_that_is_half_written_is_not_continued_with_other_weights():
    model = GPT(20, **SIZE)
    stream = model.stream("the cat", max_new_tokens=12, temperature=1.0, seed=0)
    next(stream)
    model.set_weights(model.get_weights())
    with pytest.raises(RuntimeError, match=r"model \('gpt'\): set_weights has changed its weights in the meantime"):
        list(stream)
    assert "".join(model.stream("the cat", max_new_tokens=3))


def test_what_trains_in_one_thread_is_not_used_in_another():
    model, messages = BERTEmbedder(20, **SIZE), []

    def use(call):
        try:
            in_a_thread(call)
        except RuntimeError as error:
            messages.append(str(error))

    class Using(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            use(lambda: model.embed("the cat"))
            use(lambda: model.quantize("int8"))
            use(lambda: model.load_weights("none.weights.h5"))

    model.compile("sgd", "mse")
    ids = np.ones((2, 4), "int32")
    inputs = {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": ids > 0}
    model.fit(inputs, np.ones((2, 8)), verbose=0, callbacks=[Using()])
    assert len(messages) == 3 and all("fit changes its weights in another thread" in text for text in messages)
    assert in_a_thread(lambda: model.embed("the cat")).shape == (8,)


def test_what_changes_weights_waits_for_what_measures():
    changes, order = Changes(keras.Model(name="some")), []

    def change():
        with changes.made("fit"):
            order.append("fit")

    thread = threading.Thread(target=change)
    with changes.none_while_measured(), changes.none_while_measured():  # by a callback
        thread.start()
        while changes.what is None:
            pass
        with pytest.raises(RuntimeError, match="fit changes its weights in another thread"):
            in_a_thread(lambda: changes.none_while_measured().__enter__())
        order.append("evaluate")
    thread.join()
    assert order == ["evaluate", "fit"]
    with changes.made("fit"), changes.none_while_measured():  # which `fit` does after an epoch
        assert changes.what == "fit"


def test_outputs_are_those_of_predict_whatever_has_changed():
    """With other weights, fewer that are trained, LoRA, whole numbers; and nothing is compiled twice."""
    ids = np.array([[1, 2, 3, 4], [5, 6, 7, 0]], "int32")
    inputs = {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": ids > 0}
    model = BERTEmbedder(20, **SIZE)
    dense = next(layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Dense))

    def check(model=model, batches=(inputs,)):
        for batch in batches:
            expected = model.predict_on_batch(batch)
            for _ in range(2):
                np.testing.assert_allclose(Programs.of(model).outputs(batch), expected, atol=1e-6)
        return expected

    first = check(batches=({name: x[:1, :3] for name, x in inputs.items()}, inputs))
    assert len(Programs.of(model).functions) == 2
    model.compile("sgd", "mse")
    model.fit(inputs, np.ones((2, 8)), verbose=0)
    assert not np.allclose(check(), first, atol=1e-4)
    model.encoder.trainable = False
    check()
    assert len(Programs.of(model).functions) == 2
    dense.enable_lora(2)
    model.quantize("int8")
    model.predict_function = None  # what Keras has compiled is for the old variables
    check()
    check(BERTEmbedder(20, **SIZE, dtype="mixed_bfloat16"))
