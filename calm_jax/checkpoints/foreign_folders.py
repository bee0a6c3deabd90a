"""Folders that are no checkpoint of ours, told by the names of what they hold.

Whoever looks for a checkpoint and finds none says what lies there instead and
what makes it readable: the cause, not that something is missing.
"""

from collections.abc import Collection

ADAPTER = 'adapter_config.json'
MERGE = (
  'merge it into its model where peft is installed, with '
  'peft.AutoPeftModelForSeq2SeqLM.from_pretrained(FOLDER).merge_and_unload()'
  '.save_pretrained(NEW_FOLDER)'
)
MESH_TENSORFLOW = (
  '{} is a checkpoint of Mesh TensorFlow (the first T5 codebase), which is not '
  'read. T5X converts it: python -m t5x.scripts.convert_tf_checkpoint; most '
  'published ones lie converted in gs://t5-data/pretrained_models/t5x/'
)
_VOCABULARIES = ('spiece.model', 'tokenizer.json')
_PROGRAMS = {
  '.onnx': 'programs of ONNX',
  '.gguf': 'parameters of llama.cpp (GGUF)',
  'model.bin': 'parameters of CTranslate2',
  'saved_model.pb': "a SavedModel of TensorFlow's",
}


def unreadable(path: str, names: Collection[str]) -> str | None:
  """Returns why a folder holds no checkpoint that is read, with a remedy.

  Args:
    path: of the folder, for the message.
    names: what it holds, names of folders with a slash.

  Returns:
    A message; None if the names tell nothing.
  """
  if ADAPTER in names and 'config.json' not in names:
    return (
      f'{path} holds an adapter ({ADAPTER}), not a model: {MERGE}, and give '
      'the new folder'
    )
  if any(name.endswith('.index') for name in names):
    return MESH_TENSORFLOW.format(path)
  for ending, what in _PROGRAMS.items():
    if any(name.endswith(ending) for name in names):
      return (
        f'{path} holds {what}, which are not read; take the folder that they '
        "were made from (Hugging Face's, with safetensors, or T5X's)"
      )
  weights = [
    name for name in sorted(names) if name.endswith(('.safetensors', '.bin'))
  ]
  if weights and 'config.json' not in names:
    return (
      f'{path} holds {weights[0]} and no config.json, which says what model '
      'it is of; put the config.json of that model beside it'
    )
  return None


def needs_vocabulary(path: str, names: Collection[str]) -> str | None:
  """Returns how to use a checkpoint of others' where a run was expected.

  Args:
    path: of the folder.
    names: what it holds, names of folders with a slash.

  Returns:
    A message; None if it is neither Hugging Face's nor T5X's.
  """
  ours = {'metadata/', 'metadata'} & set(names)
  vocabulary = 'spiece.model'
  if 'config.json' in names:
    whose = "Hugging Face's"
    there = [name for name in _VOCABULARIES if name in names]
    vocabulary = f'{path}/{there[0]}' if there else vocabulary
  elif 'checkpoint' in names or ('state/' in names and not ours):
    whose = "T5X's"
  else:
    return None
  return (
    f"{path} is a checkpoint of {whose}, not a run directory of calm_jax's, "
    'so its vocabulary has to be named: '
    f"--gin.generate.run.vocabulary='{vocabulary}' for generate, "
    f"vocabulary='{vocabulary}' in Python ('bytes' for ByT5). All other jobs "
    'want a run directory, which calm_jax.cli.convert makes: '
    f'--source={path} --target=RUN --to=calm_jax --vocabulary={vocabulary}'
  )
