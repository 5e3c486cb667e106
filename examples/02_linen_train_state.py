"""Train a Flax Linen model in a TrainState, and cut the learning rate when the loss stalls.

The learning rate is stored in the optimizer's state. If it is a constant, a new value can be
assigned at any time without compiling the step again: the line "compiling" appears once. (If it is
a schedule, the schedule overwrites an assigned value.) 1,347 handwritten digits to train on, 450 to
test; takes some seconds on a CPU:

    python examples/02_linen_train_state.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optlab

NUM_EPOCHS, BATCH_SIZE = 12, 64


class Classifier(nn.Module):
    """Pixels (batch, 64) → logits (batch, 10)."""

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        return nn.Dense(10)(nn.relu(nn.LayerNorm()(nn.Dense(128)(pixels))))


@jax.jit
def train_step(state, pixels, labels):
    print("compiling train_step")  # Python runs only while JAX traces the function

    def loss_of(params):
        logits = state.apply_fn(params, pixels)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradients = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=gradients), loss


def main() -> None:
    pixels, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        pixels.astype("float32") / 16, labels, test_size=450, stratify=labels, random_state=0
    )
    model = Classifier()
    state = TrainState.create(
        apply_fn=model.apply,
        params=model.init(jax.random.key(0), train_x[:1]),
        tx=optlab.sgd(learning_rate=0.3, momentum=0.9, nesterov=True),
    )

    best = jnp.inf
    for epoch in range(1, NUM_EPOCHS + 1):
        shuffled = jax.random.permutation(jax.random.key(epoch), len(train_x))
        losses = []
        for start in range(0, len(train_x) - BATCH_SIZE + 1, BATCH_SIZE):
            batch = shuffled[start : start + BATCH_SIZE]
            state, loss = train_step(state, train_x[batch], train_y[batch])
            losses.append(loss)
        loss = float(jnp.mean(jnp.array(losses)))
        rate = optlab.hyperparams(state.opt_state)["learning_rate"]
        print(f"epoch {epoch:2}: learning rate {float(rate):.4f}, loss {loss:.4f}")
        if loss > 0.9 * best:
            lower = 0.3 * rate  # an array of float32; a Python float would compile the step again
            opt_state = optlab.replace_hyperparams(state.opt_state, learning_rate=lower)
            state = state.replace(opt_state=opt_state)
        best = min(best, loss)

    accuracy = (state.apply_fn(state.params, test_x).argmax(-1) == test_y).mean()
    print(f"test accuracy: {float(accuracy):.4f}")


if __name__ == "__main__":
    main()
