"""What a page holds, for tests: tags, attributes and texts."""

import html.parser

VOID = {'meta', 'wbr', 'br', 'img', 'path', 'use', 'rect', 'line', 'circle'}


class Outline(html.parser.HTMLParser):
  """Collects tags, attributes and text, and checks that tags are closed."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.attributes, self.texts, self._open = [], [], [], []
    self.feed(text)
    self.close()
    assert not self._open

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes.extend(attrs)
    if tag not in VOID:
      self._open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes.extend(attrs)

  def handle_endtag(self, tag):
    if tag not in VOID:
      assert self._open.pop() == tag

  def handle_data(self, data):
    self.texts.append(data)
