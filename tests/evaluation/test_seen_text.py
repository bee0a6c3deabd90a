"""What metrics see of a text: truly, in every script, and before decoding."""

import random

import pytest

from calm_jax import evaluation
from calm_jax.evaluation import seen_text, text_metrics

TEXTS = {
  'English': 'The restaurant, near the river, serves cheap food (since 1999).',
  'German': 'Übermorgen fährt sie für fünf Tage nach Österreich, sagt er.',
  'French': "L'été dernier, les élèves étaient à l'hôtel près de la gare.",
  'Polish': 'Mój brat wrócił z pracy późno i powiedział, że jest głodny.',
  'Russian': 'В 2022 году в городе выпал первый снег.',
  'Chinese': '2022年,城里下了第一场雪。',
  'Greek': 'Το 2022 έπεσε το πρώτο χιόνι στην πόλη.',
  'code': 'x[i] = (a + b) * {c: d}[e] >> 2; y = -f(x) ** g // (h % 3)',
}
LATIN = ('English', 'German', 'French', 'Polish')


@pytest.fixture(params=text_metrics.METRICS)
def metric(request):
  for name, library in (
    ('rouge_l', 'rouge_score'),
    ('sentence_bleu', 'sacrebleu'),
    ('chrf', 'sacrebleu'),
  ):
    if request.param == name:
      pytest.importorskip(library)
  return text_metrics.METRICS[request.param]


def test_only_what_is_seen_tells_texts_apart(metric):
  """Another seen character changes the score, another unseen one does not."""
  rng = random.Random(0)
  tried = {True: 0, False: 0}
  for text in TEXTS.values():
    for place in rng.choices(range(len(text)), k=25):
      old, new = text[place], rng.choice('żЯ雪7x;')
      changed = text[:place] + new + text[place + 1 :]
      if old == new or old.isspace() or metric.seen(changed).split() == []:
        continue
      same = metric.seen(text).split() == metric.seen(changed).split()
      assert (metric(changed, [text]) == 1.0) == same, (text, changed)
      tried[same] += 1
  assert tried[False] > 50
  assert tried[True] > 1 or metric.seen('ж;') == 'ж;', 'nothing unseen tried'


def test_shares_by_script(metric):
  shares = {
    script: seen_text.ignored_share(metric, [text])
    for script, text in TEXTS.items()
  }
  assert seen_text.sees(metric, [TEXTS[script] for script in LATIN])
  name = text_metrics.metric_name(metric)
  blind = {
    script for script, share in shares.items() if share > seen_text.MOST_IGNORED
  }
  assert (
    blind
    == {
      'rouge_l': {'Russian', 'Chinese', 'Greek', 'code'},
      'token_f1': {'code'},
      'exact_match': {'code'},
      'sentence_bleu': set(),
      'chrf': set(),
      'same_text': set(),
    }[name]
  )
  for script in blind:
    with pytest.raises(ValueError, match=rf"(?s){name}.*Use 'chrf'"):
      seen_text.check_seen(metric, [TEXTS[script]], what='them')


def test_a_few_texts_that_are_not_seen_are_enough_to_refuse():
  """Of a tenth of the texts any distance could be hidden."""
  texts = [TEXTS['English']] * 9
  assert seen_text.sees(text_metrics.rouge_l, [*texts, TEXTS['French']])
  mixed = [*texts, TEXTS['Greek']]
  assert seen_text.ignored_share(text_metrics.rouge_l, mixed) < 0.2
  assert not seen_text.sees(text_metrics.rouge_l, mixed)
  assert seen_text.default_metric(mixed) == 'chrf'


def test_what_is_blind_finds_different_texts_alike():
  """Why it is refused: the year is all that is compared."""
  pytest.importorskip('rouge_score')
  other = 'Мой кот родился в 2022.'
  assert text_metrics.rouge_l(other, [TEXTS['Russian']]) == 1.0
  loss = evaluation.textual_loss(text_metrics.rouge_l)
  assert loss.of_texts([other], [TEXTS['Russian']]) == 0.0


def test_empty_texts_and_metrics_of_ones_own():
  def first_letter(prediction, references):
    return float(any(prediction[:1] == text[:1] for text in references))

  texts = [TEXTS['Chinese'], '']
  assert seen_text.ignored_share(text_metrics.rouge_l, ['', ' ']) == 0
  assert seen_text.ignored_share(first_letter, texts) == 0
  first_letter.seen = lambda text: text[:1]
  with pytest.raises(ValueError, match='first_letter.*ignores 93%'):
    seen_text.check_seen(first_letter, texts, what='them')


@pytest.mark.parametrize(
  ('script', 'chosen'), [('German', 'rouge_l'), ('Russian', 'chrf')]
)
def test_the_default_follows_the_text(script, chosen):
  plan = evaluation.CalibrationPlan(loss='risk')
  found = plan.for_texts([TEXTS[script]], what='the references').loss
  assert (found.name, found.metric_name) == ('risk', chosen)
  named = evaluation.CalibrationPlan(metric='token_f1')
  found = named.for_texts([TEXTS[script]], what='the references').loss
  assert found.metric_name == 'token_f1'
