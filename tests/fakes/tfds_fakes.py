"""Small data sets of TensorFlow Datasets on disk, made like the real ones.

Names, features and splits are those of the paper's three data sets, written by
`download_and_prepare` without anything to download.
"""

import os

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import registered
from tensorflow_datasets.question_answering import qa_utils

WORDS = 'red green blue black white apple pear plum house river'.split()


def prepare(directory, dataset, features, splits):
  """Writes one data set; `splits` is split name -> list of examples."""
  path, _, version_text = dataset.partition(':')
  dataset_name, _, config = path.partition('/')

  with registered.skip_registration():

    class Fake(tfds.core.GeneratorBasedBuilder):
      # TFDS would look for files of the package `fakes`, which is a folder.
      __module__ = 'tfds_fakes'
      name = dataset_name
      VERSION = tfds.core.Version(version_text)
      # Else TFDS looks beside the code for a description of the data set.
      pkg_dir_path = epath.Path(directory)
      BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

      def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=features)

      def _split_generators(self, dl_manager):
        del dl_manager
        return {name: self._generate_examples(name) for name in splits}

      def _generate_examples(self, split):
        yield from enumerate(splits[split])

  tfds.disable_progress_bar()
  Fake(data_dir=os.fspath(directory)).download_and_prepare()


def phrase(number):
  """Two words that follow from a number."""
  return f'{WORDS[number % 10]} {WORDS[number // 10 % 10]}'


def squad_row(number, answers, *, question=None, context=None):
  return {
    'id': f'id{number}',
    'title': 'fruit',
    'question': question or f'What is "{phrase(number)}", number {number}?',
    'context': context or f'A {phrase(number)}; that is {number}.',
    'answers': {'text': answers, 'answer_start': [0] * len(answers)},
  }


def squad(directory):
  """SQuAD: 60 train questions, two of them held out; 90 validation rows."""
  held_out = [
    squad_row(number, ['red', 'red apple', 'the U.S.'])
    for number in range(100, 187)
  ]
  twin = held_out[0]
  held_out += [
    # The same question once more, with one more answer.
    {**twin, 'id': 'again', 'answers': {'text': ['blue'], 'answer_start': [0]}},
    squad_row(200, []),
    squad_row(201, ['  ']),
  ]
  shouted = {**twin, 'question': twin['question'].upper() + '  '}
  train = [squad_row(number, [phrase(number)]) for number in range(58)]
  prepare(
    directory,
    'squad/v1.1:3.0.0',
    qa_utils.squadlike_features(),
    {'train': [*train, twin, shouted], 'validation': held_out},
  )


def news_row(number):
  return {
    'article': f'News {number}: {phrase(number)}.\nMore on {phrase(number)}.',
    'highlights': f'A "{phrase(number)}" .\nC:\\{number} \\" .',
    'publisher': 'cnn',
    'id': f'{number:040x}',
  }


def cnn_dailymail(directory):
  """CNN/DailyMail: 40 train, 15 validation, 30 test articles."""
  text = tfds.features.Text()
  prepare(
    directory,
    'cnn_dailymail:3.4.0',
    tfds.features.FeaturesDict(
      {'article': text, 'highlights': text, 'publisher': text, 'id': text}
    ),
    {
      # 105 is a validation article as well, 120 a test article.
      'train': [news_row(number) for number in (*range(38), 105, 120)],
      'validation': [news_row(number) for number in range(100, 115)],
      # 114 is a validation article as well.
      'test': [news_row(number) for number in range(114, 144)],
    },
  )


def wmt15(directory):
  """WMT15 French-English: 50 train, 12 validation, 40 test pairs."""

  def pair(number):
    return {
      'en': f'A {phrase(number)}, {number}.',
      'fr': f'Une {phrase(number)} é {number}.',
    }

  prepare(
    directory,
    'wmt15_translate/fr-en:1.0.0',
    tfds.features.Translation(languages=('fr', 'en')),
    {
      'train': [
        *map(pair, range(49)),
        {'en': 'Left empty.', 'fr': ''},
        {'en': ' ', 'fr': 'Vide.'},
      ],
      'validation': [pair(number) for number in range(100, 112)],
      'test': [pair(number) for number in range(200, 240)],
    },
  )
