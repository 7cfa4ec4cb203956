"""A page as a tree of its elements, strict about tags that do not fit."""

import html.parser


class Element:
  def __init__(self, tag: str, attributes: dict, parent):
    self.tag, self.attributes, self.parent, self.children, self.text = tag, attributes, parent, [], ''

  def all(self, tag: str | None = None, **attributes) -> list:
    """Descendants with this tag and these attributes, in document order; `class` is given as class_."""
    wanted = {name.rstrip('_').replace('_', '-'): value for name, value in attributes.items()}
    here = [self] if tag in (None, self.tag) and wanted.items() <= self.attributes.items() else []
    return here + [one for child in self.children for one in child.all(tag, **attributes)]

  def one(self, tag: str | None = None, **attributes):
    (found,) = self.all(tag, **attributes)
    return found

  @property
  def all_text(self) -> str:
    return self.text + ''.join(child.all_text for child in self.children)


class Tree(html.parser.HTMLParser):
  """A tree of the page; tags must be closed in order, so a name that opens one would be noticed."""

  VOID = ('meta', 'link', 'input', 'path', 'line', 'circle', 'image', 'img', 'br')

  def __init__(self, text: str):
    super().__init__()
    self.root = self.here = Element('', {}, None)
    self.feed(text)
    assert self.here is self.root, f'<{self.here.tag}> is not closed'

  def handle_starttag(self, tag, attrs):
    new = Element(tag, {name: value or '' for name, value in attrs}, self.here)
    self.here.children.append(new)
    if tag not in self.VOID:
      self.here = new

  def handle_startendtag(self, tag, attrs):
    self.here.children.append(Element(tag, dict(attrs), self.here))

  def handle_endtag(self, tag):
    assert tag == self.here.tag, f'</{tag}> closes <{self.here.tag}>'
    self.here = self.here.parent

  def handle_data(self, data):
    self.here.text += data
