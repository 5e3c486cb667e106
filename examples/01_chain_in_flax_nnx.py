"""Train a Flax NNX model with a chain: clip, AdamW with warm-up and cosine, averaged parameters.

The chain is an ordinary Optax transformation, so `nnx.Optimizer` accepts it. Its state holds the
learning rate of every update, and a moving average of the parameters. The average is put into a
copy of the model, which is tested beside the last parameters. 1,347 handwritten digits to train on,
450 to test; takes some seconds on a CPU:

    python examples/01_chain_in_flax_nnx.py
"""

import jax
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optlab

NUM_UPDATES, BATCH_SIZE = 400, 64


class Classifier(nnx.Module):
    """Pixels (batch, 64) → logits (batch, 10)."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 128, rngs=rngs)
        self.norm = nnx.LayerNorm(128, rngs=rngs)
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.norm(self.hidden(pixels))))


@nnx.jit
def train_step(model, optimizer, pixels, labels):
    def loss_of(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(pixels), labels).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


def main() -> None:
    pixels, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        pixels.astype("float32") / 16, labels, test_size=450, stratify=labels, random_state=0
    )
    schedule = optlab.schedules.warmup_cosine(
        peak_value=5e-3, warmup_steps=40, decay_steps=NUM_UPDATES, end_value=5e-4
    )
    chain = optax.chain(
        optlab.clip_by_global_norm(1.0),
        optlab.adamw(
            schedule,
            weight_decay=0.05,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),  # only matrices
        ),
        optlab.params_ema(0.99),  # last in the chain, where the updates are final
    )
    model = Classifier(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, chain, wrt=nnx.Param)

    for update in range(1, NUM_UPDATES + 1):
        batch = jax.random.choice(jax.random.key(update), len(train_x), (BATCH_SIZE,))
        loss = train_step(model, optimizer, train_x[batch], train_y[batch])
        if update in (1, 20, 40) or update % 80 == 0:
            rate = optlab.hyperparams(optimizer.opt_state)["learning_rate"]
            print(f"update {update:3}: learning rate {float(rate):.6f}, loss {float(loss):.4f}")

    averaged = nnx.clone(model)
    nnx.update(averaged, optlab.averaged_params(optimizer.opt_state))
    for name, classifier in {"last": model, "averaged": averaged}.items():
        accuracy = (classifier(test_x).argmax(-1) == test_y).mean()
        print(f"test accuracy of the {name} parameters: {float(accuracy):.4f}")


if __name__ == "__main__":
    main()
