// What the checks in this folder share: Chromium, and how a check is told.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createRequire } from 'node:module';
import net from 'node:net';
import path from 'node:path';

/** Chromium with a profile of its own, which ends with it. `modules`: the folder in which playwright-core is installed. */
export const launch = modules => {
  // A hang ends here, not with the patience of whoever runs the tests.
  setTimeout(() => {
    console.error('nothing more happened');
    process.exit(1);
  }, 280_000).unref();
  const { chromium } = installed(modules)('playwright-core');
  return chromium.launch({
    executablePath: '/usr/bin/chromium',
    args: [
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync'
    ]
  });
};

/** `require` for what is installed in `modules`. */
export const installed = modules => createRequire(path.resolve(modules, 'package.json'));

/** One line per check; the first that fails ends it. */
export const passed = check => console.log(`ok: ${check}`);

/** Notes what a page complains of. `faults` has to stay empty where nothing is meant to fail. */
export const watched = async context => {
  const page = await context.newPage();
  const faults = [];
  page.on('console', message => {
    if (['error', 'warning'].includes(message.type())) faults.push(message.text());
  });
  page.on('pageerror', error => faults.push(String(error)));
  return { page, faults };
};

/** Nothing serious or critical for who sees little, or uses a keyboard or a screen reader. */
export const accessible = async (page, modules) => {
  // What is on its way from one colour to the other is no fault.
  await page.emulateMedia({ reducedMotion: 'reduce' });
  // Not as an element: the page's own policy forbids that, and should.
  await page.evaluate(installed(modules)('axe-core').source);
  const { violations, passes } = await page.evaluate(() => axe.run());
  assert.ok(passes.length > 5, 'axe looked at little');
  const grave = violations.filter(({ impact }) => ['serious', 'critical'].includes(impact));
  const told = grave.map(({ id, help, nodes }) => `${id}: ${help}\n  ${nodes.map(({ html }) => html).join('\n  ')}`);
  assert.deepEqual(told, []);
};

/** A relay to `target` that notes what crosses the wire: the first line of each request, and of each answer. */
export const noted = async target => {
  const { hostname, port } = new URL(target);
  const wire = { requests: [], answers: [] };
  const relay = net.createServer(browser => {
    const proxy = net.connect(Number(port), hostname);
    // Over HTTP/1.1 a browser sends the next request when the last answer is whole, so each head begins a piece.
    const note = (list, first) => piece => {
      const line = first.exec(piece.toString('latin1'));
      if (line) list.push(line[1]);
    };
    browser.on('data', note(wire.requests, /^([A-Z]+ \S+) HTTP\/1/));
    proxy.on('data', note(wire.answers, /^HTTP\/1\.1 (\d+)/));
    for (const end of [browser, proxy]) {
      end.on('error', () => {
        browser.destroy();
        proxy.destroy();
      });
    }
    browser.pipe(proxy).pipe(browser);
  });
  relay.listen(0, '127.0.0.1');
  await once(relay, 'listening');
  const url = `http://127.0.0.1:${relay.address().port}`;
  /** What came since it was last asked. */
  const since = list => () => list.splice(0);
  return { url, requests: since(wire.requests), answers: since(wire.answers), end: () => relay.close() };
};
