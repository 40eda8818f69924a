package durable

import (
	"context"
	"errors"
	"log/slog"
	"syscall"
	"time"
)

// Between two looks whether somebody has made space.
const retryEvery = 2 * time.Second

// WhenTheDiskCan does what writes, which may be done again after it has failed. Where the disk refuses, it says so, and
// tries again until ctx ends: somebody may make space meanwhile. It gives any other error at once.
func WhenTheDiskCan(ctx context.Context, log *slog.Logger, waiting string, write func() error) error {
	told := ""
	for {
		err := write()
		if err == nil || !mayPass(err) {
			return err
		}
		if words := err.Error(); words != told {
			told = words
			log.Warn(waiting, "because", words, "advice", "make space there")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retryEvery):
		}
	}
}

// mayPass says whether it is the disk that refuses, full or for another reason that somebody can mend meanwhile.
func mayPass(err error) bool {
	for _, one := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG, syscall.EROFS, syscall.EIO} {
		if errors.Is(err, one) {
			return true
		}
	}
	return false
}
