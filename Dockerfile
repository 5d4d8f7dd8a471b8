# docker build -t scdataloader . && docker run --rm -v "$PWD:/data" -w /data scdataloader inspect cells.h5ad
# With CUDA: docker build --build-arg TORCH=torch -t scdataloader .
FROM python:3.11-slim
ARG TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
RUN pip install --no-cache-dir $TORCH
COPY . /src
RUN pip install --no-cache-dir "/src[remote]" && rm -rf /src
# Compiled kernels and settings of lamindb are written below the home folder.
RUN useradd --create-home user
USER user
ENTRYPOINT ["scdataloader"]
