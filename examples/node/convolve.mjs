// Calls convserve from Node: node convolve.mjs [HOST:PORT [MEGABYTES]]

import { once } from "node:events";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import protobuf from "protobufjs";

const target = process.argv[2] ?? "localhost:50051";
const megabytes = Number(process.argv[3] ?? 100);

const protos = fileURLToPath(new URL("../../proto", import.meta.url));
const contract = protoLoader.loadSync("convserve/v1/convolution_service.proto", {
  includeDirs: [protos],
  keepCase: true, // names as in the contract; a name that it does not have is left out without a word
  longs: Number,
  enums: String,
});
const { ConvolutionService } = grpc.loadPackageDefinition(contract).convserve.v1;

// gRPC receives 4 MiB at most by default; what comes back from a call may be larger.
const unlimited = { "grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1 };
const client = new ConvolutionService(target, grpc.credentials.createInsecure(), unlimited);

const call = (with_, request) =>
  new Promise((resolve, reject) => {
    const deadline = new Date(Date.now() + 60_000);
    with_.Convolve(request, { deadline }, (error, response) => (error ? reject(error) : resolve(response)));
  });

// A tensor is its dtype, its shape and its bytes: row-major, little-endian, as a Float32Array has them.
const tensor = (shape, values) => {
  const array = Float32Array.from(values);
  return { dtype: "DTYPE_FLOAT32", shape, data: Buffer.from(array.buffer, array.byteOffset, array.byteLength) };
};
const values = ({ data }) => {
  const bytes = Uint8Array.from(data); // a copy that begins where a Float32Array may
  return new Float32Array(bytes.buffer);
};

const layer = (size, kernel) => ({
  inline: {
    conv2d: {
      filters: 1,
      kernel_size: { height: size, width: size },
      data_format: "DATA_FORMAT_CHANNELS_LAST",
      use_bias: false,
    },
    weights: { kernel: tensor([size, size, 1, 1], kernel) },
  },
});

// 1. A convolution with given weights: sums of 3 x 3 pixels.
const input = tensor([1, 4, 4, 1], Array.from({ length: 16 }, (_, index) => index));
const { output } = await call(client, { layers: [layer(3, Array(9).fill(1))], input });
console.log("output", output.shape.join("x"), Array.from(values(output)).join(" "));

// 2. An error, with its details: messages of google.rpc in the trailer grpc-status-details-bin.
const { root } = protobuf.parse(`
  syntax = "proto3";
  package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message BadRequest { message FieldViolation { string field = 1; string description = 2; } repeated FieldViolation field_violations = 1; }
`, { keepCase: true });

const details = (error) => {
  const [trailer] = error.metadata.get("grpc-status-details-bin");
  const status = trailer ? root.lookupType("google.rpc.Status").decode(trailer) : { details: [] };
  const known = ["ErrorInfo", "BadRequest"];
  return Object.fromEntries(
    status.details
      .map(({ type_url, value }) => [type_url.split(".").pop(), value])
      .filter(([name]) => known.includes(name))
      .map(([name, value]) => [name, root.lookupType(`google.rpc.${name}`).decode(value)]),
  );
};

try {
  await call(client, { layers: [{ inline: { conv2d: { filters: 5, groups: 2 } } }], input });
} catch (error) {
  const { ErrorInfo, BadRequest } = details(error);
  console.log("error", grpc.status[error.code], ErrorInfo.reason);
  for (const { field, description } of BadRequest.field_violations) console.log(" ", `${field}: ${description}`);
}

// 3. The default limit: an answer of 5.8 MB does not come through a client that has it.
const picture = tensor([1, 1200, 1200, 1], new Float32Array(1200 * 1200));
const limited = new ConvolutionService(target, grpc.credentials.createInsecure());
const request = { layers: [layer(1, [2])], input: picture };
await call(limited, request).catch((error) => console.log("limit", grpc.status[error.code]));
console.log("without it", (await call(client, request)).output.data.length, "bytes");

// 4. A stream: one item of 100 MB, in pieces each way, so that no message needs a higher limit.
const side = Math.round(Math.sqrt((megabytes * 1e6) / 4));
const image = new Float32Array(side * side).map((_, index) => index % 1000);
const bytes = Buffer.from(image.buffer);
const pieceBytes = 2 ** 20;

const stream = limited.ConvolveStream({ deadline: new Date(Date.now() + 300_000) });
const received = (async () => {
  const pieces = [];
  for await (const { result, error, piece } of stream) {
    if (error) throw new Error(error.message);
    if (result) console.log("stream", result.output.shape.join("x"));
    else pieces.push(piece);
  }
  return Buffer.concat(pieces);
})();
const send = async (message) => stream.write(message) || (await once(stream, "drain"));

await send({ start: { layers: [layer(1, [2])], piece_bytes: pieceBytes, expected_bytes: 2 * bytes.length } });
await send({ item: { item_id: 1, dtype: "DTYPE_FLOAT32", shape: [1, side, side, 1] } });
for (let from = 0; from < bytes.length; from += pieceBytes) await send({ piece: bytes.subarray(from, from + pieceBytes) });
stream.end();
const doubled = values({ data: await received });
console.log("received", doubled.length * 4, "bytes,", doubled.every((value, index) => value === 2 * image[index]) ? "all doubled" : "WRONG");

client.close();
limited.close();
