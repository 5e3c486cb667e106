"""Train a small transformer to write Python's documentation, character by character.

Any problem can be a `lab.Task`: functions that initialize the model, compute the loss, draw the
next batch, and evaluate. Here the task is written by hand for a Flax NNX language model, and tuned
like any other: first loss, range test, sweep, a long run, diagnosis. The text is that of
`help("topics")`, some 370,000 characters that come with Python: the first four fifths to train on,
a tenth to validate, a tenth to test. By its frequency alone a character takes 4.7 bits; with the
model, which sees up to 32 characters before it, half as many. The script prints each step, and a
text that the model writes; it takes about a minute on a CPU:

    python examples/05_character_transformer.py
"""

import math
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import optlab
from optlab import lab

CONTEXT, WIDTH, HEADS, BLOCKS = 32, 64, 4, 2
BATCH_SIZE, TRIAL_STEPS, FINAL_STEPS = 16, 100, 1200
NUM_WINDOWS = 256  # number of windows in each split that evaluate the model
PROMPT = "If a class defines this method, "  # CONTEXT characters

# Each paragraph occurs once. Many topics repeat others, and the test text must be new to the model.
PARAGRAPHS = dict.fromkeys("\n\n".join(topics.values()).split("\n\n"))
TEXT = "\n\n".join(PARAGRAPHS)
ALPHABET, CODES = np.unique(list(TEXT), return_inverse=True)  # the text as numbers


class Block(nnx.Module):
    """Attention to earlier characters, then an MLP: (batch, length, WIDTH) → the same."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.hidden = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.out = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        mask = nnx.make_causal_mask(x[..., 0])
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.out(nnx.gelu(self.hidden(self.norm2(x))))


class Transformer(nnx.Module):
    """Codes (batch, length) → logits (batch, length, characters) of the next character."""

    def __init__(self, rngs: nnx.Rngs):
        self.characters = nnx.Embed(len(ALPHABET), WIDTH, rngs=rngs)
        self.positions = nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(BLOCKS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, len(ALPHABET), rngs=rngs)

    def __call__(self, codes: jax.Array) -> jax.Array:
        x = self.characters(codes) + self.positions(jnp.arange(codes.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


GRAPH = nnx.graphdef(nnx.eval_shape(lambda: Transformer(nnx.Rngs(0))))


def text_task() -> lab.Task:
    first, second = int(0.8 * len(CODES)), int(0.9 * len(CODES))
    train, validation, test = (jnp.asarray(part) for part in np.split(CODES, [first, second]))

    def init(key):
        return nnx.state(Transformer(nnx.Rngs(key)), nnx.Param), ()

    def loss(params, model_state, windows, key):
        logits = nnx.merge(GRAPH, params)(windows[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:])
        return losses.mean(), model_state

    def batch(key, step):
        key = jax.random.fold_in(key, step)  # the argument is the run's key, the same at every step
        return windows_at(train, jax.random.randint(key, (BATCH_SIZE,), 0, len(train) - CONTEXT))

    def evaluate(params, model_state, windows):
        nats, _ = loss(params, model_state, windows, None)
        return {"loss": nats, "bits": nats / math.log(2)}

    def spread(part):
        starts = np.linspace(0, len(part) - CONTEXT - 1, NUM_WINDOWS).astype(int)
        return windows_at(part, starts)

    splits = {"train": spread(train), "validation": spread(validation), "test": spread(test)}
    lengths = {"steps": TRIAL_STEPS, "eval_every": 50}
    return lab.Task("topics", init, loss, batch, evaluate, splits, **lengths)


def windows_at(codes, starts):
    """Return CONTEXT characters from each start, and the next one: (starts, CONTEXT + 1)."""
    return codes[starts[:, None] + np.arange(CONTEXT + 1)]


def optimizer(learning_rate, weight_decay, one_minus_b2, steps=TRIAL_STEPS):
    schedule = optlab.schedules.warmup_cosine(
        learning_rate, warmup_steps=steps // 10, decay_steps=steps
    )
    adamw = optlab.adamw(schedule, b2=1 - one_minus_b2, weight_decay=weight_decay)
    return lab.monitor(adamw, clipping=optlab.clip_by_global_norm(1.0))


def write(params, prompt: str, length: int) -> str:
    """Return the model's continuation of a prompt of CONTEXT characters."""

    def next_code(codes, key):
        logits = nnx.merge(GRAPH, params)(codes[None, :])[0, -1]
        code = jax.random.categorical(key, logits)
        return jnp.append(codes[1:], code), code

    start = jnp.asarray(np.searchsorted(ALPHABET, list(prompt)))
    _, codes = jax.lax.scan(next_code, start, jax.random.split(jax.random.key(0), length))
    return "".join(ALPHABET[codes])


def print_history(history: lab.History) -> None:
    clipped = history.monitored["clipped_share"]
    print(f"update{'train':>12}{'validation':>12}{'clipped':>12}")
    for i in range(4, len(history.steps), 4):
        done = history.steps[i]
        line = f"{done:6}{history.train['bits'][i]:12.2f}{history.validation['bits'][i]:12.2f}"
        print(line + f"{clipped[done - 1]:12.1%}")


def main() -> None:
    task = text_task()
    shares = np.bincount(CODES) / len(CODES)
    unigram = -(shares * np.log2(shares)).sum()
    print(f"{len(CODES):,} characters, {len(ALPHABET)} different: {unigram:.2f} bits for each")
    print("by how often it occurs alone.")

    print("\n1. Is the first loss that of guessing? Can it learn one batch by heart?")
    print(lab.check_initial_loss(task, num_classes=len(ALPHABET)))
    print(lab.check_overfits_small_batch(task))

    print("\n2. Which rates are viable?")
    tested = lab.lr_range_test(task, optlab.adamw, min_lr=1e-5, max_lr=1.0, seeds=3)
    print(tested)

    print("\n3. A search with short runs")
    space = {
        "learning_rate": lab.LogUniform(tested.suggested_max / 10, 3 * tested.suggested_max),
        "weight_decay": lab.LogUniform(1e-3, 1.0),
        "one_minus_b2": lab.LogUniform(1e-3, 1e-1),
    }
    result = lab.sweep(task, optimizer, space, trials=16, search="halton")
    print(result)

    print("\n4. A long run with the best, in bits a character")
    tx = optimizer(**result.best.values, steps=FINAL_STEPS)
    run = lab.train(task, tx, steps=FINAL_STEPS, key=jax.random.key(0))
    print_history(run.history)

    print("\n5. What do its curves say?")
    print(lab.diagnose(run.history))
    print(f"\ntest: {run.test['bits']:.2f} bits a character, {unigram:.2f} without a model")
    print(f"\nThe model goes on from {PROMPT!r}:\n")
    print(write(run.params, PROMPT, 200))


if __name__ == "__main__":
    main()
