package codec

import "github.com/klauspost/compress/zstd"

const windowBytes = 4 << 20 // half of what a receiver must take

// Compress puts data, at least a byte, into one zstd frame.
func Compress(data []byte) ([]byte, error) {
	encoder, err := zstd.NewWriter(nil,
		zstd.WithWindowSize(windowBytes),
		zstd.WithEncoderConcurrency(1),
		// Weights repeat nothing, but their exponents are alike: what there is to win is in the entropy alone.
		zstd.WithAllLitEntropyCompression(true),
	)
	if err != nil {
		return nil, err
	}
	defer encoder.Close()
	return encoder.EncodeAll(data, nil), nil
}
