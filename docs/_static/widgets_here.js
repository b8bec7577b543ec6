// Where embed-amd.js finds what it does not hold, the icons of buttons and the code of anywidget: beside this file, and nowhere else
{
  const here = document.currentScript, folder = new URL('.', here.src).href
  require.config({paths: {'@jupyter-widgets': folder.slice(0, -1), '@jupyter-widgets/html-manager/dist': folder.slice(0, -1)}})
  here.setAttribute('data-jupyter-widgets-cdn', folder + 'wcdn/')
  here.setAttribute('data-jupyter-widgets-cdn-only', '')
}
