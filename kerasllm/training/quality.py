"""The quality of what a model writes, at the ends of epochs: BLEU, chrF and ROUGE of a slice of held-out texts."""

import keras

from kerasllm.arguments import check_positive, check_text, read_sequence, shown
from kerasllm.backend.aside import aside
from kerasllm.constructors import reading
from kerasllm.extras import check_installed
from kerasllm.metrics.texts import bleu, chrf, rouge
from kerasllm.training.examples import check_writer, written


class WrittenQuality(keras.callbacks.Callback):
    """A base class: writes at the end of every so many epochs, and puts `scores(written, references)` into the logs.

    kerasllm's models call it before callbacks that read the logs, such as `ModelCheckpoint(monitor="val_bleu",
    mode="max")`; in `fit` of another `keras.Model` it must be listed before them.
    """

    writes_logs = True
    package = ""
    """What the scores are computed by."""

    def __init__(self, pairs, every, options):
        super().__init__()
        check_positive("every", every)
        check_installed([self.package], type(self).__name__)
        self.sources, self.references = [], []
        for i, pair in enumerate(read_sequence("pairs", pairs)):
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise ValueError(f"pairs[{i}] ({shown(pair)}) must be a (source, reference).")
            for name, text, texts in zip(("source", "reference"), pair, (self.sources, self.references), strict=True):
                check_text(f"the {name} of pairs[{i}]", text)
                if not text.strip():
                    raise ValueError(f"the {name} of pairs[{i}] ({shown(text)}) must not be empty.")
                texts.append(text)
        if not self.sources:
            raise ValueError(f"pairs ({shown(pairs)}) must not be empty.")
        if "num_return_sequences" in options:
            raise ValueError("num_return_sequences must be left out: one text is compared with each reference.")
        self.every, self.options = every, {"seed": 0, **options}

    def scores(self, texts, references):
        """The scores by their names: dict of floats."""
        raise NotImplementedError

    def on_train_begin(self, logs=None):
        check_writer(self.model, self.options)

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every:
            return
        with aside(self.model):
            texts = written(self.model, self.sources, self.options)
            logs |= {f"val_{name}": score for name, score in self.scores(texts, self.references).items()}


class TranslationQuality(WrittenQuality):
    """BLEU and chrF of translations of held-out sentences, at the ends of epochs, in the logs: `val_bleu`, `val_chrf`.

    Both are in 0 .. 100, by sacrebleu (`kerasllm.metrics.bleu`, `chrf`). Some hundred sentences tell one epoch from
    another; a figure to report is that of a whole test set. Training goes on as if nothing had been.

    Args:
        pairs: sequence of (source, reference), strings, that are not trained on.
        every: number of epochs from one measure to the next.
        **options: of `translate`, such as `num_beams`, `max_new_tokens`, `batch_size`.

    Raises:
        ImportError: `kerasllm[metrics]` is not installed.
        ValueError: a text is empty; when `fit` begins, the model does not write, has no tokenizers, or does not know an
            option.

    Example:
        >>> best = keras.callbacks.ModelCheckpoint("best.keras", monitor="val_bleu", mode="max", save_best_only=True)
        >>> model.fit(dataset, epochs=10, callbacks=[TranslationQuality(validation[:200]), best])
    """

    package = "sacrebleu"

    @reading
    def __init__(self, pairs, every=1, **options):
        super().__init__(pairs, every, options)

    def scores(self, texts, references):
        return {"bleu": bleu(texts, references)[0], "chrf": chrf(texts, references)[0]}


class SummaryQuality(WrittenQuality):
    """ROUGE of summaries of held-out texts at ends of epochs, in the logs: `val_rouge1`, `val_rouge2`, `val_rougeL`.

    They are F-measures in 0 .. 1, by rouge-score (`kerasllm.metrics.rouge`). Training goes on as if nothing had been.

    Args:
        pairs: sequence of (text, summary), strings, that are not trained on.
        every: number of epochs from one measure to the next.
        use_stemmer: whether words are compared by their Porter stems, as for English.
        **options: of `summarize`, such as `num_beams`, `max_new_tokens`, `batch_size`.

    Raises:
        ImportError: `kerasllm[metrics]` is not installed.
        ValueError: a text is empty; when `fit` begins, the model does not write, has no tokenizer, or does not know an
            option.
    """

    package = "rouge_score"

    @reading
    def __init__(self, pairs, every=1, use_stemmer=True, **options):
        super().__init__(pairs, every, options)
        self.use_stemmer = use_stemmer

    def scores(self, texts, references):
        return rouge(texts, references, self.use_stemmer)
