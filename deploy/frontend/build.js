// Makes the page: `node build.js` into dist/, `node build.js --serve` for a browser on this machine.

import { context } from 'esbuild';

const { METORIAL_URL, METORIAL_PUBLISHABLE_KEY, LISTEN = '127.0.0.1:5173' } = process.env;

if (!URL.canParse(METORIAL_URL ?? '')) throw 'METORIAL_URL: where the proxy is, such as http://127.0.0.1:8080';
// What is put into the page can be read by everybody who opens it.
if (!METORIAL_PUBLISHABLE_KEY?.startsWith('metorial_pk_')) throw 'METORIAL_PUBLISHABLE_KEY: a key that begins with metorial_pk_';

const page = await context({
  entryPoints: ['app.js', 'index.html', 'style.css'],
  loader: { '.html': 'copy' },
  bundle: true,
  minify: true,
  format: 'esm',
  outdir: 'dist',
  define: {
    METORIAL_URL: JSON.stringify(METORIAL_URL),
    METORIAL_PUBLISHABLE_KEY: JSON.stringify(METORIAL_PUBLISHABLE_KEY)
  }
});

if (process.argv.includes('--serve')) {
  const [host, port] = LISTEN.split(':');
  await page.serve({ servedir: 'dist', host, port: Number(port) });
  console.log(`the page is at http://${LISTEN}`);
} else {
  await page.rebuild();
  await page.dispose();
}
