"""Training batches from options by name, those of a DataPlan among them."""

import dataclasses


def train_batches(task, batch_size, **options):
  """Returns `data.train_batches`, the options of its plan picked out."""
  from calm_jax import data

  fields = {field.name for field in dataclasses.fields(data.DataPlan)}
  plan = {name: options.pop(name) for name in fields & set(options)}
  return data.train_batches(
    task, data.DataPlan(batch_size=batch_size, **plan), **options
  )
