// Lists deployments with the official SDK, through the proxy.

import { createMetorialCoreSDK } from '@metorial/core';

// Put in by build.js. Everybody who opens the page can read both.
const apiHost = METORIAL_URL;
const apiKey = METORIAL_PUBLISHABLE_KEY;

const shown = name => document.getElementById(name);

/** What the SDK calls in place of `fetch`: it shows how this page stands with its limit, which the SDK does not tell. */
const told = async (request, options) => {
  // The SDK says `no-cache`, and with that Chromium asks leave (OPTIONS) before each request again. Pages are as fresh
  // either way: the proxy decides how long they last.
  const answer = await fetch(request, { ...options, cache: 'default' });
  // RateLimit: "environment";r=97;t=41
  const [, left, seconds] = /;r=(\d+);t=(\d+)/.exec(answer.headers.get('RateLimit')) ?? [];
  if (left) shown('limit').textContent = `${left} requests left, more in ${seconds} s`;
  // The SDK sleeps for so long, and three seconds more, before it tries again.
  const wait = answer.headers.get('Retry-After');
  if (wait) shown('limit').textContent = `too many requests: going on in ${Number(wait) + 3} s`;
  return answer;
};

const { deployments } = createMetorialCoreSDK({ apiHost, apiKey, fetch: told }).servers;

const row = ({ id, name }) => {
  const code = Object.assign(document.createElement('code'), { textContent: id });
  const item = document.createElement('li');
  item.append(name ?? 'without a name', code);
  return item;
};

let last;

const more = async () => {
  shown('more').disabled = true;
  shown('fault').hidden = true;
  try {
    const { items, pagination } = await deployments.list({ limit: 20, after: last });
    shown('deployments').append(...items.map(row));
    last = items.at(-1)?.id ?? last;
    shown('more').disabled = !pagination.hasMoreAfter;
  } catch ({ code, message, hint, response }) {
    shown('fault').textContent = [`${code}: ${message}`, hint, response?.request_id].filter(Boolean).join(' — ');
    shown('fault').hidden = false;
    shown('more').disabled = false;
  }
};

shown('more').addEventListener('click', more);
await more();
