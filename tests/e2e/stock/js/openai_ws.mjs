// The `openai` package's OpenAIRealtimeWS; only `baseURL` is not what its documentation shows.
import OpenAI from 'openai';
import { OpenAIRealtimeWS } from 'openai/realtime/ws';
import { FULL_URL, Inbox, play, spoken, STORY, URL, WEATHER } from './scenarios.mjs';

const TOOL = {
  type: 'function', name: 'get_weather', description: 'The weather in a city.',
  parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
};

class Talk {
  inbox = new Inbox();

  constructor(url = URL) {
    const client = new OpenAI({ apiKey: 'sk-test', baseURL: `${url}/v1` });
    this.rt = new OpenAIRealtimeWS({ model: 'gpt-realtime' }, client);
    this.rt.on('event', (event) => this.inbox.put(event));
    this.rt.on('error', (error) => this.inbox.put({ type: 'sdk.error', error }));
  }

  static async open(session = {}) {
    const talk = new Talk();
    await talk.inbox.find((event) => event.type === 'session.created');
    talk.rt.send({ type: 'session.update', session: { type: 'realtime', ...session } });
    return talk;
  }

  async say() {
    for await (const chunk of spoken()) {
      this.rt.send({ type: 'input_audio_buffer.append', audio: chunk.toString('base64') });
    }
  }

  ask(text) {
    const item = { type: 'message', role: 'user', content: [{ type: 'input_text', text }] };
    this.rt.send({ type: 'conversation.item.create', item });
    this.rt.send({ type: 'response.create' });
  }

  /** All of the next response from `from` on. */
  async answer(from = 0) {
    const [done, end] = await this.inbox.find((event) => event.type === 'response.done', from);
    const facts = { status: done.response.status, audio_ms: 0, end: end + 1 };
    for (const event of this.inbox.all.slice(from, end)) {
      if (event.type === 'response.output_audio.delta') facts.audio_ms += Buffer.from(event.delta, 'base64').length / 48;
      if (event.type === 'response.output_audio_transcript.done') facts.reply = event.transcript;
      if (event.type === 'response.output_text.done') facts.reply = event.text;
      if (event.type === 'conversation.item.input_audio_transcription.completed') facts.transcript = event.transcript;
      if (event.type === 'response.function_call_arguments.done') facts.call = event;
    }
    return facts;
  }

  close() {
    this.rt.close();
  }
}

await play({
  async voice() {
    const talk = await Talk.open();
    await talk.say();
    const facts = await talk.answer();
    talk.close();
    return facts;
  },

  async text() {
    const talk = await Talk.open({ output_modalities: ['text'] });
    talk.ask('good morning');
    const facts = await talk.answer();
    talk.close();
    return facts;
  },

  async barge_in() {
    const talk = await Talk.open();
    talk.ask(STORY);
    const [delta] = await talk.inbox.find((event) => event.type === 'response.output_audio.delta');
    await talk.say();
    const first = await talk.answer();
    talk.rt.send({ type: 'conversation.item.truncate', item_id: delta.item_id, content_index: 0, audio_end_ms: 20 });
    const second = await talk.answer(first.end);
    await talk.inbox.find((event) => event.type === 'conversation.item.truncated');
    talk.close();
    return { interrupted: first.status, ...second };
  },

  async function() {
    const talk = await Talk.open({ tools: [TOOL] });
    talk.ask(WEATHER);
    const first = await talk.answer();
    const { call_id, name } = first.call;
    talk.rt.send({ type: 'conversation.item.create', item: { type: 'function_call_output', call_id, output: 'rainy' } });
    talk.rt.send({ type: 'response.create' });
    const second = await talk.answer(first.end);
    talk.close();
    return { name, arguments: JSON.parse(first.call.arguments), ...second };
  },

  async error() {
    const talk = await Talk.open();
    talk.rt.send({ type: 'conversation.item.delete', item_id: 'none', event_id: 'mine' });
    const [event] = await talk.inbox.find((one) => one.type === 'error');
    talk.ask('good morning');
    const facts = await talk.answer();
    talk.close();
    return { errors: [[event.error.type, event.error.code, event.error.event_id]], ...facts };
  },

  async busy() {
    const began = performance.now();
    const talk = new Talk(FULL_URL);
    const [event] = await talk.inbox.find((one) => one.type === 'sdk.error');
    return { error: String(event.error.cause ?? event.error), seconds: (performance.now() - began) / 1000 };
  },
});
