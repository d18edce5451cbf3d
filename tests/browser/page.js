// What a frontend's page does: the official SDK and plain `fetch`, with nothing but a publishable key.

import { Metorial } from 'metorial';

window.sdkAt = (apiHost, apiKey) => new Metorial({ apiHost, apiKey });

/** What a page can read of an answer. */
window.ask = async (url, key, options = {}) => {
  const headers = key ? { Authorization: `Bearer ${key}`, ...options.headers } : options.headers;
  try {
    const answer = await fetch(url, { credentials: 'include', ...options, headers });
    const text = await answer.text();
    const fields = Object.fromEntries(answer.headers);
    return { type: answer.type, status: answer.status, fields, body: text && JSON.parse(text) };
  } catch (error) {
    return { failed: error.name };
  }
};

/** The SDK's error that `call` ends with. */
window.refused = async call => {
  try {
    return { succeeded: await call() };
  } catch (error) {
    return { ofTheSdk: error.__isMetorialError, code: error.code, hint: error.hint, response: error.response };
  }
};

/** Has the SDK's sleeps noted, and ended at once. */
window.noteSleeps = () => {
  const { setTimeout } = window;
  window.sleeps = [];
  window.setTimeout = (callback, milliseconds, ...rest) => {
    window.sleeps.push(milliseconds / 1000);
    return setTimeout(callback, 0, ...rest);
  };
};
