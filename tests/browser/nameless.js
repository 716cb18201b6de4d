// Every control that can be seen and has no name that a screen reader could say.
() => {
  const seen = 'button, a[href], input, select, dialog[open], [role=progressbar], img, canvas';
  const text = (nodes) => [...nodes].map((node) => node?.textContent ?? '').join('');
  return [...document.querySelectorAll(seen)]
    .filter((node) => node.getClientRects().length && !node.closest('[hidden]'))
    .filter((node) => {
      const owners = (node.getAttribute('aria-labelledby') ?? '').split(' ').map((id) => document.getElementById(id));
      const name = node.getAttribute('aria-label') || text(owners) || text(node.labels ?? [])
        || node.textContent || node.title || node.placeholder;
      return !(node.tagName === 'IMG' ? node.hasAttribute('alt') : name.trim());
    })
    .map((node) => node.outerHTML);
}
