// The official client for Node. As outcomes.py, which says what is asked for and why.
import OpenAI from "openai";

const { MODEL, BASE_URL, KEY, LIMITED_KEY, BROKEN_URL, BROKEN_KEY } = process.env;
const question = { model: MODEL, max_tokens: 8, messages: [{ role: "user", content: "Say hello." }] };

const client = ({ url, key }) => new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });

async function* chat(place) {
  yield (await client(place).chat.completions.create(question)).choices[0].message.content;
}

async function* stream(place) {
  const chunks = await client(place).chat.completions.create({ ...question, stream: true });
  for await (const chunk of chunks) {
    const piece = chunk.choices[0]?.delta?.content;
    if (piece) yield piece;
  }
}

async function outcome(pieces) {
  const got = [];
  try {
    for await (const piece of pieces) got.push(piece);
  } catch (error) {
    return { pieces: got, error: error.constructor.name, message: error.message };
  }
  return { pieces: got, error: null };
}

const usual = { url: BASE_URL, key: KEY };
const limited = { url: BASE_URL, key: LIMITED_KEY };
const broken = { url: BROKEN_URL, key: BROKEN_KEY };
console.log(
  JSON.stringify({
    chat: await outcome(chat(usual)),
    stream: await outcome(stream(usual)),
    wrong_key: await outcome(chat({ url: BASE_URL, key: "sk-wrong-but-long-enough" })),
    within_limit: await outcome(chat(limited)),
    over_limit: await outcome(chat(limited)),
    cut_between_events: await outcome(stream(broken)),
    cut_within_an_event: await outcome(stream(broken)),
  }),
);
