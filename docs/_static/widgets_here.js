// Where embed-amd.js finds the code of widgets that it does not hold (anywidget): beside this file, and nowhere else
{
  const here = document.currentScript
  here.setAttribute('data-jupyter-widgets-cdn', new URL('wcdn/', here.src).href)
  here.setAttribute('data-jupyter-widgets-cdn-only', '')
}
