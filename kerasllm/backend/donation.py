"""Keras's trainer on JAX, whose variables keep their values while it works.

Keras 3.15.1 takes the values of the variables away from them for as long as `fit`, `evaluate` and `predict` run, gives
their memory to each compiled step (donates it) and puts back what the last step has returned at the end, which an
exception may be in the way of
(https://github.com/keras-team/keras/blob/v3.15.1/keras/src/backend/jax/trainer.py). Here only what training changes
is donated, by the training step alone, and each step puts what it returns into the variables at once.
"""

from functools import partial

import jax
import keras

from kerasllm.backend.interruption import whole
from kerasllm.backend.steps import marked

# Keras's order in the state of a step of training; those of `evaluate` and `predict` leave some out.
GROUPS = ("trainable_variables", "non_trainable_variables", "optimizer_variables", "metrics_variables")
TRAINED, OPTIMIZED = GROUPS.index("trainable_variables"), GROUPS.index("optimizer_variables")


class Keeping:
    """What goes before Keras's trainer: `evaluate` and `predict` lose no weight, and to read a lost one is an error."""

    # Keras keeps the state between two steps here, and would put it into the variables later than others do.
    _jax_state = property(lambda self: None, lambda self, state: None)

    def jax_state_sync(self):
        """Let Keras read the state anew from the variables, which always hold it."""
        self._jax_state_synced = True

    def _get_jax_state(self, purge_model_variables=False, **groups):
        variables = [
            self.optimizer.variables if group == "optimizer_variables" else getattr(self, group)
            for group in GROUPS
            if groups.get(group)
        ]
        return _State.read(variables)

    def make_train_function(self, force=False):
        if self.train_function is None or force:
            self.train_function = self._make_function(self._kept(marked(self, self.train_step), donates=True))

    def make_test_function(self, force=False):
        if self.test_function is None or force:
            self.test_function = self._make_function(self._kept(marked(self, self.test_step)))

    def make_predict_function(self, force=False):
        def predict_step(state, data):
            outputs, non_trainable_variables = self.predict_step(state, data)
            return outputs, (state[0], non_trainable_variables)

        if self.predict_function is None or force:
            self.predict_function = self._make_function(self._kept(predict_step), concatenate_outputs=True)

    def _kept(self, step, donates=False):
        """A step of Keras, (state, data) -> (result, state), compiled, which puts what it changes into the variables.

        What it does not change is no output: XLA would copy it.
        """
        shardings = None
        if keras.distribution.distribution() is not None:
            self._get_state_sharding_spec()  # warns of variables that are not distributed

        def changing(donated, others, data):
            state = tuple(
                [b if a is None else a for a, b in zip(*group, strict=True)]
                for group in zip(donated, others, strict=True)
            )
            result, new = step(state, data)
            changed = {
                (i, j): b
                for i, group in enumerate(new)
                for j, b in enumerate(group)
                if b is not state[i][j] or donated[i][j] is not None
            }
            if shardings is not None:
                changed = {
                    (i, j): jax.lax.with_sharding_constraint(b, shardings[i][j]) for (i, j), b in changed.items()
                }
            return result, changed

        run, changing.__name__ = changing, step.__name__  # which JAX's logs and profiles show
        if not self.run_eagerly and self.jit_compile:
            run = jax.jit(changing, donate_argnums=0)

        def kept(state, data):
            nonlocal shardings
            if shardings is None and keras.distribution.distribution() is not None:
                shardings = [[x.sharding for x in group] for group in state]
            results = []

            def advance():
                try:
                    # The list has what comes before Python looks at signals.
                    results.extend(map(run, *([x] for x in state.parted(donates)), [data]))
                finally:
                    for _, changed in results:
                        for (i, j), value in changed.items():
                            state.variables[i][j]._value = value

            whole(advance) if donates else advance()
            return results[0][0], state.renewed()

        return kept

    def mend(self, is_built, functions):
        """Mark the weights that are gone, whose memory a step had that failed; all else begins anew."""
        trained, others = self.trainable_variables, self.non_trainable_variables
        optimizer = getattr(getattr(self, "optimizer", None), "variables", [])
        is_lost = any(map(_is_gone, trained + optimizer))
        for seeds in (s for layer in self._flatten_layers() for s in layer._seed_generators):
            if _is_gone(seeds.state):
                seeds.state.assign(keras.random.SeedGenerator(seeds._initial_seed).state)
        for variable in [*(trained if is_lost else ()), *filter(_is_gone, others)]:
            variable._value = None
            variable._initializer = partial(_refuse, self.name)  # which Keras asks for the value of one without
        if any(map(_is_gone, self.metrics_variables)):
            self.reset_metrics()
        if is_lost:
            new = type(self.optimizer).from_config(self.optimizer.get_config())
            new.build(trained)
            for old, variable in zip(optimizer, new.variables, strict=True):
                old.assign(variable)
        super().mend(is_built, functions)


class _State(tuple):
    """Keras's state of a step, a tuple of lists of values, which knows its variables, lists alike."""

    @classmethod
    def read(cls, variables):
        state = cls([v.value for v in group] for group in variables)
        state.variables = variables
        return state

    def parted(self, donates):
        """Two nests like it with None in each other's places: the large arrays that training changes; the rest."""
        donated = [
            [x if donates and i in (TRAINED, OPTIMIZED) and x.ndim else None for x in group]
            for i, group in enumerate(self)
        ]
        others = [
            [x if y is None else None for x, y in zip(*groups, strict=True)]
            for groups in zip(self, donated, strict=True)
        ]
        return donated, others

    def renewed(self):
        """The state with the values of now."""
        state = type(self)([v._value for v in group] for group in self.variables)
        state.variables = self.variables
        return state


def _is_gone(variable):
    """Whether the value of a variable cannot be read: it was donated, or what should compute it has failed."""
    value = variable._value
    if value is None or value.is_deleted():
        return True
    try:
        value.block_until_ready()
    except Exception:  # whatever has failed
        return True
    return False


def _refuse(name, *arguments, **options):
    raise RuntimeError(
        f"The weights of the model {name!r} are gone: an exception came in a step of training, which on JAX has their "
        "memory. `load_weights` or `set_weights` brings back those that were saved, as "
        "`keras.callbacks.ModelCheckpoint` and `BackupAndRestore` do, `from_preset` makes the model anew."
    )
