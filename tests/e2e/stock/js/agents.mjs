// `@openai/agents-realtime`: RealtimeSession over its WebSocket transport; only `url` is not what its documentation shows.
import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession, tool } from '@openai/agents-realtime';
import { FULL_URL, Inbox, play, spoken, STORY, URL, WEATHER } from './scenarios.mjs';

const getWeather = tool({
  name: 'get_weather',
  description: 'The weather in a city.',
  parameters: {
    type: 'object', properties: { city: { type: 'string' } }, required: ['city'], additionalProperties: true,
  },
  strict: false,
  execute: async ({ city }) => `rainy in ${city}`,
});

class Talk {
  inbox = new Inbox();

  static async open({ url = URL, tools = [], config = {} } = {}) {
    const talk = new Talk();
    const agent = new RealtimeAgent({ name: 'Assistant', instructions: 'Be brief.', tools });
    const transport = new OpenAIRealtimeWebSocket({ url: `${url.replace('http', 'ws')}/v1/realtime?model=gpt-realtime` });
    talk.session = new RealtimeSession(agent, { transport, config, tracingDisabled: true });
    talk.session.on('audio', (event) => talk.inbox.put({ type: 'audio', bytes: event.data.byteLength }));
    talk.session.on('audio_interrupted', () => talk.inbox.put({ type: 'interrupted' }));
    talk.session.on('agent_end', (_context, _agent, output) => talk.inbox.put({ type: 'end', output }));
    talk.session.on('agent_tool_end', (_context, _agent, one, result) => talk.inbox.put({ type: 'tool', name: one.name, result }));
    talk.session.on('history_updated', (history) => talk.inbox.put({ type: 'history', history: structuredClone(history) }));
    talk.session.on('error', (event) => talk.inbox.put({ type: 'error', error: event.error }));
    await talk.session.connect({ apiKey: 'sk-test' });
    return talk;
  }

  async say() {
    for await (const chunk of spoken()) {
      this.session.sendAudio(new Uint8Array(chunk).buffer);
    }
  }

  /** Up to the end of the `ends`th answer; its history is what the client believes was said. */
  async answer(ends = 1) {
    let at = -1;
    let end;
    for (let count = 0; count < ends; count += 1) [end, at] = await this.inbox.find((event) => event.type === 'end', at + 1);
    const facts = { audio_ms: 0, reply: end.output };
    for (const event of this.inbox.all.slice(0, at)) {
      if (event.type === 'audio') facts.audio_ms += event.bytes / 48;
      if (event.type === 'interrupted') facts.interrupted = true;
      if (event.type === 'tool') Object.assign(facts, { name: event.name, output: event.result });
    }
    return facts;
  }

  /** What the client has of the caller's speech after it asked the server for the item. */
  async transcript() {
    const heard = (event) => event.type === 'history'
      && event.history.some((item) => item.role === 'user' && item.content?.[0]?.transcript);
    const [{ history }] = await this.inbox.find(heard);
    return history.find((item) => item.role === 'user' && item.content[0].transcript).content[0].transcript;
  }

  close() {
    this.session.close();
  }
}

await play({
  async voice() {
    const talk = await Talk.open();
    await talk.say();
    const facts = { transcript: await talk.transcript(), ...await talk.answer() };
    talk.close();
    return facts;
  },

  async text() {
    const talk = await Talk.open({ config: { outputModalities: ['text'] } });
    talk.session.sendMessage('good morning');
    const facts = await talk.answer();
    talk.close();
    return facts;
  },

  async barge_in() {
    const talk = await Talk.open();
    talk.session.sendMessage(STORY);
    await talk.inbox.find((event) => event.type === 'audio');
    await talk.say();
    const facts = { ...await talk.answer(2), transcript: await talk.transcript() };
    talk.close();
    return facts;
  },

  async function() {
    const talk = await Talk.open({ tools: [getWeather] });
    talk.session.sendMessage(WEATHER);
    const facts = await talk.answer(2);
    talk.close();
    return facts;
  },

  async error() {
    const talk = await Talk.open();
    talk.session.transport.sendEvent({ type: 'conversation.item.delete', item_id: 'none' });
    const [event] = await talk.inbox.find((one) => one.type === 'error');
    talk.session.sendMessage('good morning');
    const facts = { errors: [JSON.stringify(event.error)], ...await talk.answer() };
    talk.close();
    return facts;
  },

  async busy() {
    const began = performance.now();
    try {
      await Talk.open({ url: FULL_URL });
    } catch (error) {
      return { error: `${error?.message ?? JSON.stringify(error)}`, seconds: (performance.now() - began) / 1000 };
    }
    throw new Error('let in');
  },
});
