"""The Jinja template of the report page; see `pages.py` for what fills it.

A module and not a data file, so that every way of installing the package
carries it. Nothing in the page refers to the network.
"""

STYLE = """
:root { color-scheme: light; --ink: #1b1f27; --soft: #5b626e; --line: #e0e3e8; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #f6f7f9; line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans",
  sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 25px; margin: 0 0 2px; }
h2 { font-size: 18px; margin: 0 0 10px; }
h3 { font-size: 15px; margin: 20px 0 6px; }
p { margin: 6px 0; }
.soft { color: var(--soft); }
.small { font-size: 13px; }
section { background: #fff; border: 1px solid var(--line); border-radius: 8px;
  padding: 18px 20px; margin-top: 18px; }
.facts { display: grid; gap: 12px; margin-top: 18px;
  grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); }
.fact { background: #fff; border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 16px; }
.fact b { display: block; font-size: 24px; line-height: 1.25; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: right; padding: 6px 8px; white-space: nowrap;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; font-size: 12.5px;
  white-space: normal; vertical-align: bottom; line-height: 1.3; }
th:first-child, td:first-child { text-align: left; }
.context td { text-align: left; white-space: normal; vertical-align: top;
  overflow-wrap: anywhere; }
.context td:first-child { width: 130px; color: var(--soft); }
tr.certified td { background: #fdf1f2; }
tr.certified td:first-child { font-weight: 600; }
.command { font-family: monospace; overflow-wrap: anywhere; }
.strip { display: flex; width: 150px; height: 14px; border-radius: 3px;
  overflow: hidden; border: 1px solid #c9ced6; margin-left: auto; }
.strip i { display: block; height: 100%; }
.figures { display: grid; gap: 18px;
  grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); }
figure { margin: 0; }
figure svg { width: 100%; height: auto; }
figcaption { font-size: 13px; color: var(--soft); }
.legend { display: flex; flex-wrap: wrap; align-items: center; gap: 3px;
  margin: 8px 0 2px; font-size: 13px; }
.legend .token { min-width: 30px; text-align: center; }
.sample { border-top: 1px solid var(--line); padding: 14px 0 10px;
  break-inside: avoid; }
.sample dl { display: grid; grid-template-columns: 92px 1fr; margin: 0;
  gap: 6px 12px; }
.sample dt { color: var(--soft); font-size: 13px; padding-top: 2px; }
.sample dd { margin: 0; overflow-wrap: anywhere; }
.badge { display: inline-block; border-radius: 10px; padding: 1px 9px;
  background: #eef0f3; font-size: 12.5px; margin-right: 6px; }
.tokens { line-height: 2.5; margin-left: -5px; }
.differs { text-decoration: underline; text-decoration-color: #d1495b;
  text-decoration-thickness: 2px; text-underline-offset: 2px; }
.token { display: inline-block; line-height: 1.25; padding: 1px 3px 0;
  border-radius: 3px; vertical-align: middle; white-space: pre;
  cursor: default; }
.token small { display: block; font-size: 9.5px; line-height: 1.2;
  text-align: center; opacity: .8; }
.word { margin-left: 5px; }
.glued { margin-left: 1px; }
@media print { body { background: #fff; } main { padding: 0; max-width: none; }
  section, .fact { border: 0; padding: 8px 0; }
  .scroll { overflow: visible; } table { font-size: 11px; }
  th, td { padding: 4px 5px; }
  .figures { grid-template-columns: 1fr 1fr; }
  table, figure { break-inside: avoid; } h2, h3 { break-after: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ result.task }}: early exit, {{ result.split }} split</title>
<style>{{ style }}{{ depth_style }}</style>
</head>
<body>
<main>
{% macro token_line(tokens) -%}
<span class="tokens">
{%- for token in tokens -%}
<wbr><span class="token d{{ token.exit_layer }}
{{- ' word' if token.opens_word else ' glued' }}" title="{{ token.title }}">
{%- if token.differs %}<span class="differs">{{ token.text }}</span>
{%- else %}{{ token.text }}{% endif -%}
<small>{{ token.exit_layer }}</small></span>
{%- endfor -%}
</span>
{%- endmacro %}
{% macro plain_line(tokens) -%}
{%- for token in tokens -%}
{{ ' ' if token.opens_word and not loop.first -}}
{% if token.differs %}<span class="differs" title="{{ token.title }}">
{{- token.text }}</span>{% else %}{{ token.text }}{% endif %}
{%- endfor -%}
{%- endmacro %}
{% macro grid(table, rows=None) %}
<div class="scroll"><table>
<thead><tr>
{% for cell in table.header %}<th>
{{- cell | replace('-', '\u2011') | replace(' %', '\u00a0%') }}</th>
{%- endfor %}</tr>
</thead>
<tbody>
{% for line in table.rows %}
<tr{% if rows %} class="{{ rows[loop.index0].kind }}"{% endif %}>
{%- set strip = strips[loop.index0] if rows else None %}
{%- for cell in line %}
{%- if loop.last and strip %}
<td><span class="strip" title="{{ strip.title }}">
{%- for part in strip.parts -%}
<i class="d{{ part.exit_layer }}" style="width:{{ part.percent }}%"></i>
{%- endfor -%}
</span></td>
{%- else %}<td>{{ cell }}</td>{% endif %}
{%- endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% for note in table.notes %}<p class="soft small">{{ note }}</p>{% endfor %}
{% endmacro %}
{% macro pictures(figures) %}
<div class="figures">
{% for figure in figures %}
<figure role="img" aria-label="{{ figure.caption }}">{{ figure.svg }}
<figcaption>{{ figure.caption }}</figcaption></figure>
{% endfor %}
</div>
{% endmacro %}
{% macro legend() %}
<div class="legend"><span>layer</span>
{% for layer in range(1, result.num_layers + 1) %}
<span class="token d{{ layer }}">{{ layer }}</span>
{% endfor %}</div>
{% endmacro %}

<h1>{{ result.task }}</h1>
<p class="soft">Early exit on {{ result.num_examples }} inputs of the
{{ result.split }} split; {{ result.num_layers }} decoder layers.</p>
<div class="facts">
{% for fact in facts %}
<div class="fact"><b>{{ fact.value }}</b><span class="soft small">
{{ fact.words }}</span></div>
{% endfor %}
</div>

{% if result.certificate %}
<section>
<h2>{{ "What is guaranteed" if result.certificate.certified
  else "Nothing is guaranteed beyond the full model" }}</h2>
<p>{{ result.certificate.description }}</p>
{% if realised %}<p><strong>{{ realised }}</strong></p>{% endif %}
<p class="soft small">The guarantee is about inputs drawn like the calibration
inputs, each decoded on its own, at this one setting. It bounds what the output
loses, not what it costs to compute.</p>
</section>
{% endif %}

<section>
<h2>Quality and depth</h2>
{{ grid(comparison, result.rows) }}
{% if result.budget %}<p>{{ result.budget.describe() }}</p>{% endif %}
{{ legend() }}
{% if timing %}
<h2 style="margin-top:22px">Wall clock</h2>
{{ grid(timing) }}
{% endif %}
</section>

<section>
<h2>Pictures</h2>
{{ pictures(figures) }}
</section>

{% if validation %}
<section>
<h2>The guarantee, counted</h2>
<p class="soft">{{ validation.about }}</p>
<p><strong>{{ validation.verdict }}</strong></p>
{{ pictures(validation.figures) }}
{% for title, table in validation.sections %}
<h3>{{ title }}</h3>
{{ grid(table) }}
{% endfor %}
<p class="soft small command">{{ validation.command }}</p>
</section>
{% endif %}

{% if samples %}
<section>
<h2>Outputs, token by token</h2>
<p class="soft small">Chosen: {{ result.sample_selection }}. The small number
under a token is the layer it left at; point at it for its confidence.
<span class="differs">Underlined</span>: tokens that the other output does not
have.</p>
{{ legend() }}
{% for sample in samples %}
<div class="sample">
<p><span class="badge">distance to full {{ sample.loss }}</span>
<span class="badge">mean layer {{ sample.mean_exit_layer }} of
{{ result.num_layers }}</span></p>
<dl>
<dt>source</dt><dd>{{ sample.source }}</dd>
<dt>early exit</dt><dd>{{ token_line(sample.early) }}</dd>
<dt>full model</dt><dd>{{ plain_line(sample.full) }}
{%- if sample.same %} <span class="soft small">(the same)</span>{% endif %}</dd>
{% for reference in sample.references %}
<dt>reference</dt><dd>{{ reference }}</dd>
{% endfor %}
</dl>
</div>
{% endfor %}
</section>
{% endif %}

<section>
<h2>How this was obtained</h2>
<table class="context">
{% for name, value in context %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}
</table>
</section>
</main>
</body>
</html>
"""
