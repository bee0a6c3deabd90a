"""Tables without some of their columns."""

from collections.abc import Collection

from calm_jax.reporting import tables


def without_columns(
  table: tables.Table, titles: Collection[str]
) -> tables.Table:
  """Returns the table without some columns and the notes that begin with them.

  >>> table = tables.Table(('a', 'n'), (('b', '1'),), ('n: a number.',))
  >>> without_columns(table, ['n'])
  Table(header=('a',), rows=(('b',),), notes=())
  """
  kept = [i for i, title in enumerate(table.header) if title not in titles]
  return tables.Table(
    header=tuple(table.header[i] for i in kept),
    rows=tuple(tuple(row[i] for i in kept) for row in table.rows),
    notes=tuple(
      note for note in table.notes if note.split(':')[0] not in titles
    ),
  )


def without_empty_columns(table: tables.Table) -> tables.Table:
  """Returns the table without columns in which no row has a number.

  >>> without_empty_columns(tables.Table(('a', 'n'), (('b', '-'),))).header
  ('a',)
  """
  columns = zip(table.header, *table.rows, strict=True)
  empty = [title for title, *cells in columns if set(cells) == {'-'}]
  return without_columns(table, empty)
