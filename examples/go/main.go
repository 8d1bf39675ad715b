// Calls convserve from Go: go run . [HOST:PORT [MEGABYTES]]
package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"math"
	"os"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	convserve "github.com/convserve/convserve/go/convserve/v1"
)

const pieceBytes = 1 << 20

// A tensor is its dtype, its shape and its bytes: row-major, little-endian.
func tensor(shape []int64, values []float32) *convserve.Tensor {
	data := make([]byte, 4*len(values))
	for index, value := range values {
		binary.LittleEndian.PutUint32(data[4*index:], math.Float32bits(value))
	}
	return &convserve.Tensor{Dtype: convserve.Dtype_DTYPE_FLOAT32, Shape: shape, Data: data}
}

func values(data []byte) []float32 {
	numbers := make([]float32, len(data)/4)
	for index := range numbers {
		numbers[index] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*index:]))
	}
	return numbers
}

func layer(size int32, kernel []float32) []*convserve.LayerReference {
	noBias := false
	return []*convserve.LayerReference{{Layer: &convserve.LayerReference_Inline{Inline: &convserve.InlineLayer{
		Conv2D: &convserve.Conv2D{
			Filters:    1,
			KernelSize: &convserve.Size2D{Height: size, Width: size},
			DataFormat: convserve.DataFormat_DATA_FORMAT_CHANNELS_LAST,
			UseBias:    &noBias,
		},
		Weights: &convserve.Weights{Kernel: tensor([]int64{int64(size), int64(size), 1, 1}, kernel)},
	}}}}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	target, megabytes := "localhost:50051", 100.0
	if len(os.Args) > 1 {
		target = os.Args[1]
	}
	if len(os.Args) > 2 {
		var err error
		megabytes, err = strconv.ParseFloat(os.Args[2], 64)
		check(err)
	}
	connection, err := grpc.Dial(target, grpc.WithInsecure())
	check(err)
	defer connection.Close()
	client := convserve.NewConvolutionServiceClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()

	// 1. A convolution with given weights: sums of 3 x 3 pixels.
	pixels, ones := make([]float32, 16), make([]float32, 9)
	for index := range pixels {
		pixels[index] = float32(index)
	}
	for index := range ones {
		ones[index] = 1
	}
	input := tensor([]int64{1, 4, 4, 1}, pixels)
	answer, err := client.Convolve(ctx, &convserve.ConvolveRequest{Layers: layer(3, ones), Input: input})
	check(err)
	fmt.Println("output", answer.Output.Shape, values(answer.Output.Data))

	// 2. An error, with its details.
	groups := int32(2)
	wrong := []*convserve.LayerReference{{Layer: &convserve.LayerReference_Inline{Inline: &convserve.InlineLayer{
		Conv2D: &convserve.Conv2D{Filters: 5, Groups: &groups},
	}}}}
	_, err = client.Convolve(ctx, &convserve.ConvolveRequest{Layers: wrong, Input: input})
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			fmt.Println("error", status.Code(err), detail.Reason)
		case *errdetails.BadRequest:
			for _, violation := range detail.FieldViolations {
				fmt.Printf("  %s: %s\n", violation.Field, violation.Description)
			}
		}
	}

	// 3. gRPC receives 4 MiB at most by default: an answer of 5.8 MB needs a higher limit.
	picture := tensor([]int64{1, 1200, 1200, 1}, make([]float32, 1200*1200))
	request := &convserve.ConvolveRequest{Layers: layer(1, []float32{2}), Input: picture}
	_, err = client.Convolve(ctx, request)
	fmt.Println("limit", status.Code(err))
	answer, err = client.Convolve(ctx, request, grpc.MaxCallRecvMsgSize(64<<20))
	check(err)
	fmt.Println("without it", len(answer.Output.Data), "bytes")

	// 4. A stream: one item of 100 MB, in pieces each way, so that no message needs a higher limit.
	side := int64(math.Sqrt(megabytes * 1e6 / 4))
	image := make([]float32, side*side)
	for index := range image {
		image[index] = float32(index % 1000)
	}
	data := tensor([]int64{1, side, side, 1}, image).Data
	stream, err := client.ConvolveStream(ctx)
	check(err)
	go send(stream, side, data)
	var received []byte
	for {
		answer, err := stream.Recv()
		if err == io.EOF {
			break
		}
		check(err)
		switch message := answer.Message.(type) {
		case *convserve.ConvolveStreamResponse_Result:
			fmt.Println("stream", message.Result.Output.Shape)
		case *convserve.ConvolveStreamResponse_Error:
			log.Fatal(message.Error.Message)
		case *convserve.ConvolveStreamResponse_Piece:
			received = append(received, message.Piece...)
		}
	}
	result := "all doubled"
	for index, value := range values(received) {
		if value != 2*image[index] {
			result = "WRONG"
		}
	}
	fmt.Println("received", len(received), "bytes,", result)
}

func send(stream convserve.ConvolutionService_ConvolveStreamClient, side int64, data []byte) {
	start := &convserve.StreamStart{Layers: layer(1, []float32{2}), PieceBytes: pieceBytes, ExpectedBytes: 2 * int64(len(data))}
	check(stream.Send(&convserve.ConvolveStreamRequest{Message: &convserve.ConvolveStreamRequest_Start{Start: start}}))
	item := &convserve.StreamItem{ItemId: 1, Dtype: convserve.Dtype_DTYPE_FLOAT32, Shape: []int64{1, side, side, 1}}
	check(stream.Send(&convserve.ConvolveStreamRequest{Message: &convserve.ConvolveStreamRequest_Item{Item: item}}))
	for len(data) > 0 {
		length := len(data)
		if length > pieceBytes {
			length = pieceBytes
		}
		piece := &convserve.ConvolveStreamRequest_Piece{Piece: data[:length]}
		check(stream.Send(&convserve.ConvolveStreamRequest{Message: piece}))
		data = data[length:]
	}
	check(stream.CloseSend())
}
